"""A text encoder's folder in transformers' layout: its config, and weights held to the names and shapes that the config asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import Options, checked
from safelight.models.checkpoints.tensors import Shapes, differences, list_tensors, read_stored, shapes_of

HF_WEIGHTS = "model.safetensors"


def read_config(folder: Path, kind: type[Options], model_type: str) -> Options:
    """The options in `config.json` that the dataclass `kind` has; `CheckpointError` if it is another model's or one is no such value."""
    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != model_type:
        raise CheckpointError(f"{path}: model_type is {content.get('model_type')!r}, expected {model_type!r}")
    if content.get("quantization_config"):
        raise CheckpointError(
            f"{path}: quantization_config is not supported, only weights in a floating-point type"
        )
    try:
        return checked(kind, content, least=0)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_exactly(
    folder: Path,
    wanted: Shapes,
    canonical: Callable[[dict[str, Any]], dict[str, Any]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tensors of `folder` by their `canonical` names; `CheckpointError`, before a weight is read, unless they are those `wanted`."""
    stored = canonical(list_tensors(folder, HF_WEIGHTS))
    if wrong := differences(wanted, shapes_of(stored)):
        raise CheckpointError(f"{folder}: {wrong[0]}")
    return read_stored(stored, str(device), dtype)
