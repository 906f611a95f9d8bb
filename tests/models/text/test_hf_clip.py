"""CLIP towers in transformers' layout equal transformers' own, and faults of folders are named."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.text.hf_clip import POSITION_IDS, HfClipTower, canonical_names, expected_shapes
from tests.models.closeness import assert_near
from tests.models.text.folders import edit, edit_json, randomise, shapes_in

VOCABULARY, CONTEXT = 64, 12
TINY = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 24,
}
TRUE_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TRUE_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
CONFIGS = {
    "quick-gelu, the end mark of older configs": TINY | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "gelu, the last token as end mark": TINY | {"hidden_act": "gelu", "eos_token_id": VOCABULARY - 1},
    "another epsilon": TINY | {"hidden_act": "gelu", "layer_norm_eps": 1e-2},
    "a layer of CLIP-L": TRUE_L | {"num_hidden_layers": 2},  # the states are those before the last layer
    "a layer of bigG": TRUE_BIG_G | {"num_hidden_layers": 2},
}
Written = tuple[Path, CLIPTextModelWithProjection]


def write(folder: Path, options: dict[str, Any]) -> Written:
    numbers = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": VOCABULARY - 1,
        "bos_token_id": VOCABULARY - 2,
    }
    theirs = randomise(CLIPTextModelWithProjection(CLIPTextConfig(**(numbers | options))))
    theirs.save_pretrained(folder)
    return folder, theirs


def ids() -> Tensor:
    """Four texts, padded with the end mark as by L's tokenizer or with 0 as by bigG's; the last is full."""
    texts = [[62, 5, 7, 63], [62, 63], [62, 0, 9, 0, 63], [62, *range(10), 63]]
    return torch.tensor(
        [text + [pad] * (CONTEXT - len(text)) for text, pad in zip(texts, (63, 63, 0, 0), strict=True)]
    )


def their_output(theirs: CLIPTextModelWithProjection) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        out = theirs(ids(), output_hidden_states=True)
    return out.hidden_states[-2], out.text_embeds


@pytest.fixture(params=CONFIGS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    return write(tmp_path / "text_encoder", CONFIGS[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "text_encoder", TINY)[0]


def test_states_equal_transformers(written: Written) -> None:
    folder, theirs = written
    states, pooled = HfClipTower(folder, "cpu", torch.float32)(ids())
    their_states, their_pooled = their_output(theirs)
    assert_near(states, their_states)
    assert_near(pooled, their_pooled)


def test_bfloat16_states_are_close_in_direction(tmp_path: Path) -> None:
    folder, theirs = write(tmp_path, TINY)
    for actual, expected in zip(
        HfClipTower(folder, "cpu", torch.bfloat16)(ids()), their_output(theirs), strict=True
    ):
        assert actual.dtype == torch.bfloat16
        assert torch.cosine_similarity(actual.float().flatten(), expected.flatten(), dim=0) >= 0.999


def test_the_expected_shapes_are_what_transformers_writes(folder: Path) -> None:
    assert expected_shapes(folder) == shapes_in(folder)


def test_flops_equal_the_counter_of_torch(folder: Path) -> None:
    tower = HfClipTower(folder, "cpu", torch.float32)
    shadow = copy.copy(tower)
    # The counter ignores attention on processors.
    shadow._tower, shadow._device = copy.deepcopy(tower._tower).to("meta"), "meta"
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, CONTEXT, dtype=torch.long))
    assert tower.flops_per_text == counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("text_projection.weight"), r"tensor text_projection\.weight is missing$"),
        (
            lambda t: t.pop("text_model.encoder.layers.1.self_attn.k_proj.bias"),
            r"text_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias is missing",
        ),
        (lambda t: t.update(stowaway=torch.zeros(1)), "stowaway is not expected"),
        (
            lambda t: t.update({"text_model.final_layer_norm.bias": torch.zeros(3)}),
            r"final_layer_norm\.bias has shape \(3,\), expected \(32,\)",
        ),
    ],
    ids=["projection", "one of three", "extra", "shape"],
)
def test_weights_are_loaded_strictly_and_named_as_in_the_file(
    folder: Path, change: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=match):
        HfClipTower(folder, "cpu", torch.float32)


def test_the_position_numbers_of_older_files_are_ignored(folder: Path) -> None:
    without = HfClipTower(folder, "cpu", torch.float32)(ids())
    edit(folder, lambda t: t.update({POSITION_IDS: torch.arange(CONTEXT)[None]}))
    for actual, expected in zip(HfClipTower(folder, "cpu", torch.float32)(ids()), without, strict=True):
        assert torch.equal(actual, expected)
    assert canonical_names(shapes_in(folder)) == expected_shapes(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "clip_vision_model"},
            "model_type is 'clip_vision_model', expected 'clip_text_model'",
        ),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', only quick_gelu, gelu are supported"),
        ({"eos_token_id": 5}, "eos_token_id is 5"),
        ({"num_hidden_layers": 1}, "no layer before the last"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 32"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number, at least 0"),
    ],
)
def test_an_unsupported_config_is_named(folder: Path, changes: dict[str, Any], match: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{match}"):
        HfClipTower(folder, "cpu", torch.float32)
