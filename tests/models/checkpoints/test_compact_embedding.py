"""models/checkpoints/compact_embedding.py: files with the trained rows only mean the same as full ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.models.checkpoints.compact_embedding import ROWS, TABLE, TOKENS, compact_embedding
from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS
from safelight.models.checkpoints.writer import write_clip
from safelight.models.find_checkpoint import ensure_tiny
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.open_clip_folder import expected_shapes, load_clip

TRAINED = (0, 5, 320, 736, 3055, 49406, 49407)  # of the vocabulary; among them "a", "red" and "apple"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A CLIP whose table is zero but for `TRAINED`."""
    folder = tmp_path / "full"
    shutil.copytree(ensure_tiny() / "text_encoder", folder)
    tensors = load_file(folder / CLIP_WEIGHTS)
    is_trained = torch.zeros(len(tensors[TABLE]), 1)
    is_trained[list(TRAINED)] = 1.0
    tensors[TABLE] *= is_trained
    save_file(tensors, folder / CLIP_WEIGHTS)
    return folder


@pytest.fixture
def compact(full: Path, tmp_path: Path) -> Path:
    """The same with the rows of `TRAINED` only."""
    config = read_json(full / CLIP_CONFIG)["model_cfg"]
    tensors = compact_embedding(load_file(full / CLIP_WEIGHTS))
    write_clip(tmp_path / "compact", config["embed_dim"], config["vision_cfg"], config["text_cfg"], tensors)
    return tmp_path / "compact"


def test_the_network_is_the_same_in_a_smaller_file(full: Path, compact: Path) -> None:
    expected, loaded = load_clip(full).state_dict(), load_clip(compact).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    tensors = load_file(compact / CLIP_WEIGHTS)
    assert tensors[TOKENS].tolist() == list(TRAINED) and TABLE not in tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert expected_shapes(compact) == shapes and shapes[ROWS][0] == len(TRAINED)


def test_the_words_of_the_other_rows_are_unknown(full: Path, compact: Path) -> None:
    for tower in map(ClipTextTower, (full, compact)):
        assert tower.tokenise("a red apple zebra").unknown_words == ("zebra",)


def change_tokens(tokens: list[int]) -> Callable[[dict[str, Tensor], dict[str, Any]], object]:
    return lambda tensors, config: tensors.update({TOKENS: torch.tensor(tokens)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_tokens([0, 5, 5, 736, 3055, 49406, 49407]), "must increase from 0 to at most 49407"),
        (change_tokens([0, 320, 5, 736, 3055, 49406, 49407]), "must increase from 0"),
        (change_tokens([-1, 5, 320, 736, 3055, 49406, 49407]), "must increase from 0"),
        (change_tokens([0, 5, 320, 736, 3055, 49407, 49408]), "must increase from 0 to at most 49407"),
        (change_tokens([0, 5, 320]), r"tensor text.token_embedding.tokens has shape \(3,\), expected \(7,\)"),
        (lambda tensors, config: config.update(token_rows=8), r"has shape \(7, 16\), expected \(8, 16\)"),
        (lambda tensors, config: config.update(token_rows=0), "token_rows must be a number from 1 to 49408"),
        (lambda tensors, config: config.update(token_rows="7"), "token_rows must be a number .*, not '7'"),
        (lambda tensors, config: config.pop("token_rows"), "text.token_embedding.weight is missing"),
        (lambda tensors, config: tensors.pop(TOKENS), "text.token_embedding.tokens is missing"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    compact: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object], message: str
) -> None:
    tensors, config = load_file(compact / CLIP_WEIGHTS), read_json(compact / CLIP_CONFIG)
    change(tensors, config)
    save_file(tensors, compact / CLIP_WEIGHTS)
    (compact / CLIP_CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_clip(compact)
