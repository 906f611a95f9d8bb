"""Stable Diffusion 3's text encoders equal diffusers' pipeline, and faults of folders are named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.text.bpe import BytePairs
from safelight.models.text.config import SD3_T5_TOKENS
from safelight.models.text.sd3 import Sd3Towers
from tests.models.text.folders import (
    VOCABULARY,
    edit_json,
    randomise,
    write_clip_tokenizer,
    write_t5_tokenizer,
)

JOINT = 96
END = 49407
TEXTS = [
    "a red apple, on the table",
    "",
    "It's 3D: naïve café 東京 🦊 <end_of_text>",
    "a red apple on a green table " * 60,
]
L: dict[str, Any] = {
    "hidden_size": 32,
    "projection_dim": 24,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}
BIG_G: dict[str, Any] = {
    "hidden_size": 48,
    "projection_dim": 40,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "eos_token_id": END,
}


@dataclass(frozen=True, slots=True)
class Written:
    """diffusers' pipeline, the folder that it writes, and our towers in that folder."""

    folder: Path
    pipeline: StableDiffusion3Pipeline
    ours: Sd3Towers


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A pipeline of small random parts."""
    folder, sources = tmp_path_factory.mktemp("sd3"), tmp_path_factory.mktemp("sources")
    t5 = T5Config(
        vocab_size=VOCABULARY,
        d_model=JOINT,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=4, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=JOINT, caption_projection_dim=16,
            pooled_projection_dim=64, out_channels=4, pos_embed_max_size=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=clip(L),
        tokenizer=CLIPTokenizer.from_pretrained(
            write_clip_tokenizer(sources / "l", pad_token="<|endoftext|>")
        ),
        text_encoder_2=clip(BIG_G),
        tokenizer_2=CLIPTokenizer.from_pretrained(write_clip_tokenizer(sources / "g", pad_token="!")),
        text_encoder_3=randomise(T5EncoderModel(t5)),
        tokenizer_3=T5TokenizerFast.from_pretrained(write_t5_tokenizer(sources / "t5")),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return Written(folder, pipeline, towers(folder))


@pytest.fixture(scope="module")
def without_t5(complete: Written, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, pipeline = tmp_path_factory.mktemp("sd3"), complete.pipeline
    parts = {
        name: part
        for name, part in pipeline.components.items()
        if name not in ("image_encoder", "feature_extractor")
    }
    smaller = StableDiffusion3Pipeline(**(parts | {"text_encoder_3": None, "tokenizer_3": None}))
    smaller.save_pretrained(folder)
    return Written(folder, smaller, towers(folder))


@pytest.fixture(params=["complete", "without_t5"])
def written(request: pytest.FixtureRequest) -> Written:
    written: Written = request.getfixturevalue(request.param)
    return written


@pytest.fixture
def folder(complete: Written, tmp_path: Path) -> Path:
    return shutil.copytree(
        complete.folder, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3")
    )


def clip(options: dict[str, Any]) -> CLIPTextModelWithProjection:
    return randomise(
        CLIPTextModelWithProjection(CLIPTextConfig(intermediate_size=64, num_hidden_layers=3, **options))
    )


def towers(folder: Path, dtype: torch.dtype = torch.float32) -> Sd3Towers:
    return Sd3Towers(folder, "cpu", dtype)


def their_reading(pipeline: StableDiffusion3Pipeline, text: str) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        states, _, pooled, _ = pipeline.encode_prompt(
            text, None, None, device="cpu", do_classifier_free_guidance=False
        )
    return states[0], pooled[0]


def test_readings_equal_diffusers(written: Written) -> None:
    for text in TEXTS:
        reading, (states, pooled) = written.ours.read(text), their_reading(written.pipeline, text)
        assert reading.states.shape == (77 + SD3_T5_TOKENS, JOINT)
        torch.testing.assert_close(reading.states, states, atol=1e-4, rtol=0)
        torch.testing.assert_close(reading.pooled, pooled, atol=1e-4, rtol=0)
        assert reading.mask.all()
        assert reading.unknown_words == ()


def test_bfloat16_states_are_close_in_direction(written: Written) -> None:
    reading, expected = (
        towers(written.folder, torch.bfloat16).read(TEXTS[0]),
        their_reading(written.pipeline, TEXTS[0]),
    )
    assert reading.pooled is not None
    for actual, expected_tensor in zip((reading.states, reading.pooled), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.cosine_similarity(actual.flatten(), expected_tensor.flatten(), dim=0) >= 0.999


def test_without_t5_its_states_are_zeros(without_t5: Written) -> None:
    reading = without_t5.ours.read("a red apple")
    assert not reading.states[77:].any()
    assert not reading.states[:77, L["hidden_size"] + BIG_G["hidden_size"] :].any()


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_text_that_only_t5_had_to_cut_is_truncated(
    without_t5: Written, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """T5 may split a word that CLIP has a token for."""
    t5_states, _ = without_t5.ours._read_t5("a red apple")
    monkeypatch.setattr(without_t5.ours, "_read_t5", lambda text: (t5_states, is_cut))
    assert without_t5.ours.read("a red apple").truncated == is_cut


def test_tokens_are_counted_as_clip_counts_them(written: Written) -> None:
    ours = written.ours
    fits, cut = ours.read("apple " * 75), ours.read("apple " * 76)
    assert (fits.num_tokens, fits.truncated) == (75, False)
    assert (cut.num_tokens, cut.truncated) == (76, True)
    assert fits.pooled is not None and cut.pooled is not None
    assert torch.equal(fits.pooled, cut.pooled)
    assert (ours.read("").num_tokens, ours.read("").truncated) == (0, False)


def test_an_exclamation_mark_is_a_word_as_in_open_clip(without_t5: Written) -> None:
    """transformers reads "!" as padding if a tokenizer pads with it; CLIP was trained to read it."""
    ours = without_t5.ours
    for text in ("a happy dog! wow!!", "it’s “quoted” &amp; ﬁne"):
        assert ours.read(text).num_tokens == len(BytePairs()._tokenizer.encode(text))
    ids = open_clip.tokenize("a happy dog! wow!!")  # padded with 0, as for bigG
    with torch.inference_mode():
        expected = ours._clips[1](ids)[1][0]
    pooled = ours.read("a happy dog! wow!!").pooled
    assert pooled is not None and torch.equal(pooled[L["projection_dim"] :], expected)


def test_a_text_cannot_contain_marks_and_long_words_are_split(without_t5: Written) -> None:
    ours = without_t5.ours
    for mark in ("<end_of_text>", "<|endoftext|>"):
        assert ours.read(f"red apple {mark} rocket").num_tokens > 3
    long_word = ours.read("東" * 4000)
    assert long_word.truncated
    assert long_word.num_tokens >= 4000


def test_flops_add_up(complete: Written, without_t5: Written) -> None:
    """The encoders' own tests compare their counts with torch's counter."""
    all_three, two = complete.ours, without_t5.ours
    assert two.flops_per_text == sum(tower.flops_per_text for tower in two._clips)
    assert all_three._t5 is not None
    assert all_three.flops_per_text == two.flops_per_text + all_three._t5.flops_per_text


def test_both_layouts_of_a_clip_tokenizer_are_read(without_t5: Written, folder: Path) -> None:
    assert (folder / "tokenizer_2" / "tokenizer.json").exists()
    before = without_t5.ours.read("a red apple")
    shutil.rmtree(folder / "tokenizer_2")
    write_clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    assert torch.equal(towers(folder).read("a red apple").states, before.states)


def other_vocabulary(folder: Path) -> None:
    words = json.loads((folder / "vocab.json").read_text())
    words["apple</w>"], words["table</w>"] = words["table</w>"], words["apple</w>"]
    (folder / "vocab.json").write_text(json.dumps(words))


def other_merges(folder: Path) -> None:
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join([lines[0], *reversed(lines[1:])]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_vocabulary, "tokenizer is not CLIP's tokenizer: token 'table</w>' is missing"),
        (other_merges, "tokenizer is not CLIP's tokenizer: its merges"),
        (
            lambda f: (f / "vocab.json").write_text('{"a": 0}'),
            "tokenizer is not CLIP's tokenizer: token '!' is missing",
        ),
        (lambda f: (f / "vocab.json").unlink(), r"vocab\.json is missing"),
        (lambda f: (f / "merges.txt").unlink(), r"merges\.txt cannot be read"),
        (lambda f: (f / "tokenizer_config.json").unlink(), r"tokenizer_config\.json is missing"),
        (
            lambda f: edit_json(f / "tokenizer_config.json", pad_token="[PAD]"),
            r"pad_token '\[PAD\]' is not one of CLIP's tokens",
        ),
        (
            lambda f: edit_json(f / "tokenizer_config.json", model_max_length=248),
            "model_max_length is 248, the text encoders read 77",
        ),
    ],
    ids=["vocabulary", "merges", "few words", "no vocabulary", "no merges", "no config", "padding", "length"],
)
def test_a_tokenizer_that_is_not_clips_is_named(
    folder: Path, change: Callable[[Path], object], match: str
) -> None:
    shutil.rmtree(folder / "tokenizer")
    change(write_clip_tokenizer(folder / "tokenizer", pad_token="<|endoftext|>"))
    with pytest.raises(CheckpointError, match=match):
        towers(folder)


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("text_encoder_2/config.json", {"max_position_embeddings": 64}, "read 77 and 64 tokens"),
        (
            "text_encoder/config.json",
            {"vocab_size": 500, "eos_token_id": 2},
            r"text_encoder/config\.json: vocab_size is 500",
        ),
        (
            "transformer/config.json",
            {"joint_attention_dim": 64},
            "have 80 channels together, the transformer takes 64",
        ),
        (
            "transformer/config.json",
            {"joint_attention_dim": 128},
            "text_encoder_3 has 96 channels, the transformer takes 128",
        ),
        ("transformer/config.json", {"joint_attention_dim": None}, "joint_attention_dim is None"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    complete: Written, tmp_path: Path, file: str, changes: dict[str, Any], match: str
) -> None:
    folder = shutil.copytree(complete.folder, tmp_path / "model")
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=match):
        towers(folder)


def test_without_t5_transformers_is_not_needed(without_t5: Written) -> None:
    code = (
        "import sys; sys.modules |= {'transformers': None, 'tokenizers': None}; import torch; "
        "from pathlib import Path; from safelight.models.text.sd3 import Sd3Towers; "
        f"towers = Sd3Towers(Path({str(without_t5.folder)!r}), 'cpu', torch.float32); "
        "print(towers.read('a red apple').num_tokens)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "3", process.stderr


def test_with_t5_transformers_is_needed(complete: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install -e '.\[t5\]'"):
        towers(complete.folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"text_encoder_3": [None, None], "tokenizer_3": [None, None]},
        {"text_encoder_3": [None, None]},
        {"text_encoder_3": None},
        {"text_encoder_3": [None, "T5EncoderModel"]},  # diffusers looks at the library
        {"tokenizer_3": [None, None]},
    ],
)
def test_null_in_the_index_means_without_t5_even_if_its_folder_is_there(
    complete: Written, without_t5: Written, tmp_path: Path, entries: dict[str, object]
) -> None:
    folder = shutil.copytree(complete.folder, tmp_path / "model")
    edit_json(folder / "model_index.json", **entries)
    ours = towers(folder)
    assert ours.flops_per_text == without_t5.ours.flops_per_text < complete.ours.flops_per_text
    assert torch.equal(ours.read(TEXTS[0]).states, without_t5.ours.read(TEXTS[0]).states)


def test_no_entry_in_the_index_means_without_t5(complete: Written, tmp_path: Path) -> None:
    folder = shutil.copytree(complete.folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    del index["text_encoder_3"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert not towers(folder).read(TEXTS[0]).states[77:].any()
