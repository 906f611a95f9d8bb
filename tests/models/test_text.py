"""The text tower: unknown words, truncation, padding, open_clip's own answer."""

import math
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.text import ClipTextTower
from models.tiny import CONTEXT, ensure_tiny, write_clip


@pytest.fixture(scope="module")
def tower() -> ClipTextTower:
    return ClipTextTower(ensure_tiny() / "text_encoder")


def test_pooled_and_states_are_open_clips(tower: ClipTextTower) -> None:
    clip = open_clip.create_model(f"local-dir:{ensure_tiny() / 'text_encoder'}").eval()
    ids = torch.stack([tower.tokenise(t).ids for t in ("a red apple", "cat")])
    with torch.inference_mode():
        states, mask = tower(ids)
        expected = clip.encode_text(ids, normalize=True) * math.sqrt(16)
    torch.testing.assert_close(states[:, 0], expected)
    assert states.shape == (2, CONTEXT + 1, 16)
    assert mask.sum(1).tolist() == [1 + 3 + 2, 1 + 1 + 2]


def test_words_with_untrained_tokens_are_dropped_and_reported(tmp_path: Path, tower: ClipTextTower) -> None:
    source = ensure_tiny() / "text_encoder"
    tensors = load_file(source / "open_clip_model.safetensors")
    unknown = tower.tokenise("zebra").ids[1]
    tensors["text.token_embedding.weight"][unknown] = 0.0
    write_clip(tmp_path, {}, {})
    (tmp_path / "open_clip_config.json").write_text((source / "open_clip_config.json").read_text())
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    forgetful = ClipTextTower(tmp_path)
    with_unknown, without = forgetful.tokenise("a red zebra apple zebra"), forgetful.tokenise("a red apple")
    assert with_unknown.unknown_words == ("zebra",)
    assert torch.equal(with_unknown.ids, without.ids)


def test_long_texts_are_cut_and_say_so(tower: ClipTextTower) -> None:
    room = CONTEXT - 2
    assert not tower.tokenise("cat " * room).truncated
    cut = tower.tokenise("cat " * (room + 1))
    assert (cut.truncated, cut.num_tokens) == (True, room + 1)
    assert torch.equal(cut.ids, tower.tokenise("cat " * room).ids)
