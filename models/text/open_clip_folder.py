"""CLIPs in open_clip's folder layout: `open_clip_config.json` and `open_clip_model.safetensors`."""

from pathlib import Path
from typing import Any

import torch

from safelight.models.checkpoints.compact_embedding import TABLE, compact_shapes, expand_embedding
from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import (
    CLIP_WEIGHTS,
    PartFiles,
    Shapes,
    differences,
    fill,
    list_tensors,
    read_stored,
    shapes_of,
)
from safelight.models.text.open_clip_classes import CustomTextCLIP


def load_clip(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> CustomTextCLIP:
    """Load both towers in float32.

    Only open_clip's network is used: its own loading reads pickles, stretches positions and ignores missing
    files. Raises `CheckpointError` for anything but exactly the tensors that the config asks for.
    """
    clip = _build(folder)
    shapes = shapes_of(clip.state_dict())
    stored = list_tensors(folder, CLIP_WEIGHTS, options, torch.float32)
    if faults := differences(_shapes_in_file(shapes, folder), shapes_of(stored)):
        raise CheckpointError(f"{folder}: {faults[0]}")
    num_tokens, _ = shapes[TABLE]
    tensors = expand_embedding(read_stored(stored, "cpu", torch.float32), num_tokens, folder)
    return fill(clip, tensors, folder)


def expected_shapes(folder: Path) -> Shapes:
    """Names and shapes of the tensors that `folder` must hold: both towers, as open_clip saves them.

    Of the token embeddings the file may hold the trained rows only.
    """
    with torch.device("meta"):
        shapes = shapes_of(_build(folder).state_dict())
    return _shapes_in_file(shapes, folder)


FILES = PartFiles(CLIP_WEIGHTS, expected_shapes)


def read_model_config(folder: Path) -> dict[str, Any]:
    """open_clip's `model_cfg`. Raises `CheckpointError` unless both towers are open_clip's own."""
    config = read_json(folder / CLIP_CONFIG).get("model_cfg", {})
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - config.keys()
    if missing or "hf_model_name" in config["text_cfg"] or not config.get("custom_text"):
        raise CheckpointError(
            f"{folder / CLIP_CONFIG}: only open_clip's own towers with custom_text are supported"
        )
    return dict(config)


def _shapes_in_file(shapes: Shapes, folder: Path) -> Shapes:
    return compact_shapes(shapes, read_json(folder / CLIP_CONFIG), folder / CLIP_CONFIG)


def _build(folder: Path) -> CustomTextCLIP:
    config = read_model_config(folder)
    return CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
