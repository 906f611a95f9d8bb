"""The embedded text tower: unknown words, truncation, padding, and equality with open_clip."""

import copy
import math
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from safelight.models.checkpoints.json_files import CLIP_CONFIG
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS
from safelight.models.find_checkpoint import ensure_tiny
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.open_clip_folder import expected_shapes
from safelight.models.tiny import CONTEXT


@pytest.fixture(scope="module")
def tower() -> ClipTextTower:
    return ClipTextTower(ensure_tiny() / "text_encoder")


def test_pooled_text_and_states_equal_open_clip(tower: ClipTextTower) -> None:
    clip = open_clip.create_model(f"local-dir:{ensure_tiny() / 'text_encoder'}").eval()
    ids = torch.stack([tower.tokenise(t).ids for t in ("a red apple", "cat")])
    with torch.inference_mode():
        states, mask = tower(ids)
        expected = clip.encode_text(ids, normalize=True) * math.sqrt(16)
    torch.testing.assert_close(states[:, 0], expected)
    assert states.shape == (2, CONTEXT + 1, 16)
    assert mask.sum(1).tolist() == [1 + 3 + 2, 1 + 1 + 2]


def test_read_returns_the_forward_pass_of_the_tokens(tower: ClipTextTower) -> None:
    tokenised, reading = tower.tokenise("a red apple"), tower.read("a red apple")
    states, mask = tower(tokenised.ids[None])
    assert torch.equal(reading.states, states[0])
    assert torch.equal(reading.mask, mask[0])
    assert (reading.pooled, reading.num_tokens, reading.truncated, reading.unknown_words) == (
        None,
        3,
        False,
        (),
    )


@pytest.mark.parametrize("text", ["a red apple", "", "It's 3D!! naïve café 東京 &amp; “quoted”", "cat " * 40])
def test_ids_equal_open_clip(tower: ClipTextTower, text: str) -> None:
    assert torch.equal(tower.tokenise(text).ids, open_clip.tokenize(text, context_length=CONTEXT)[0])


def test_the_expected_shapes_are_those_in_the_file() -> None:
    folder = ensure_tiny() / "text_encoder"
    assert expected_shapes(folder) == {
        name: tuple(tensor.shape) for name, tensor in load_file(folder / CLIP_WEIGHTS).items()
    }


def test_flops_equal_the_counter_of_torch(tower: ClipTextTower) -> None:
    shadow = copy.deepcopy(tower).to("meta")  # the counter ignores attention on processors
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, CONTEXT, dtype=torch.long, device="meta"))
    assert tower.flops_per_text == counter.get_total_flops()


def test_words_with_untrained_tokens_are_dropped_and_reported(tmp_path: Path, tower: ClipTextTower) -> None:
    source = ensure_tiny() / "text_encoder"
    tensors = load_file(source / CLIP_WEIGHTS)
    unknown = tower.tokenise("zebra").ids[1]
    tensors["text.token_embedding.weight"][unknown] = 0.0
    (tmp_path / CLIP_CONFIG).write_text((source / CLIP_CONFIG).read_text())
    save_file(tensors, tmp_path / CLIP_WEIGHTS)
    smaller = ClipTextTower(tmp_path)
    with_unknown, without = smaller.tokenise("a red zebra apple zebra"), smaller.tokenise("a red apple")
    assert with_unknown.unknown_words == ("zebra",)
    assert torch.equal(with_unknown.ids, without.ids)
    # an unknown punctuation mark is dropped alone
    tensors["text.token_embedding.weight"][tower.tokenise("?").ids[1]] = 0.0
    save_file(tensors, tmp_path / CLIP_WEIGHTS)
    question = ClipTextTower(tmp_path).tokenise("a red apple?")
    assert question.unknown_words == ()
    assert torch.equal(question.ids, without.ids)


def test_a_word_with_one_untrained_token_is_unknown(tmp_path: Path, tower: ClipTextTower) -> None:
    """A word of several tokens is known only if all of them are: a part of it would be another word."""
    source = ensure_tiny() / "text_encoder"
    first, *_, last = tokens = tower._pairs.encode("xylophonist")
    assert len(set(tokens)) == len(tokens) > 1
    for untrained in (first, last):
        tensors = load_file(source / CLIP_WEIGHTS)
        tensors["text.token_embedding.weight"][untrained] = 0.0
        (tmp_path / CLIP_CONFIG).write_text((source / CLIP_CONFIG).read_text())
        save_file(tensors, tmp_path / CLIP_WEIGHTS)
        tokenised = ClipTextTower(tmp_path).tokenise("a red xylophonist apple")
        assert (tokenised.unknown_words, tokenised.num_tokens) == (("xylophonist",), 3)
        assert torch.equal(tokenised.ids, tower.tokenise("a red apple").ids)
    assert tower.tokenise("xylophonist").unknown_words == ()


def test_a_prompt_cannot_contain_start_or_end_marks(tower: ClipTextTower) -> None:
    tokenised = tower.tokenise("red apple <end_of_text> rocket")
    assert torch.equal(tokenised.ids, tower.tokenise("red apple rocket").ids)


def test_very_long_words_are_unknown_and_not_cached(tower: ClipTextTower) -> None:
    assert tower.tokenise("x" * 4000).unknown_words == ("x" * 4000,)
    for number in range(40):
        words = (
            f"{chr(97 + number % 26)}{chr(97 + k % 26)}{'abcdefghij'[k % 10] * (k % 7)}q{k}"
            for k in range(400)
        )
        tower.tokenise(" ".join(words))
    assert len(tower._pairs._tokenizer.cache) <= 10_000 + 4000


def test_long_texts_are_truncated_and_reported(tower: ClipTextTower) -> None:
    room = CONTEXT - 2
    assert not tower.tokenise("cat " * room).truncated
    cut = tower.tokenise("cat " * (room + 1))
    assert (cut.truncated, cut.num_tokens) == (True, room + 1)
    assert torch.equal(cut.ids, tower.tokenise("cat " * room).ids)
