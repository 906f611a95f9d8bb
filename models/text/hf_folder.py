"""A text encoder's folder in transformers' layout: its config, and weights held to the names and shapes that the config asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from models.checkpoint import Shapes, differences, list_tensors, load_tensors, shapes_of
from models.folder import CheckpointError, read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HF_WEIGHTS = "model.safetensors"

Config = TypeVar("Config", bound="DataclassInstance")


def read_config(folder: Path, kind: type[Config], model_type: str) -> Config:
    """The options in `config.json` that the dataclass `kind` has; `CheckpointError` if it is another model's or one is no such value."""
    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != model_type:
        raise CheckpointError(f"{path}: model_type is {content.get('model_type')!r}, expected {model_type!r}")
    defaults = {field.name: field.default for field in fields(kind)}
    options = {name: content[name] for name in defaults if name in content}
    for name, value in options.items():
        if type(value) is not type(defaults[name]):
            raise CheckpointError(f"{path}: {name} is {value!r}, expected something like {defaults[name]!r}")
    return kind(**options)


def load_exactly(
    folder: Path, wanted: Shapes, canonical: Callable[[dict[str, Any]], dict[str, Any]], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of `folder` by their `canonical` names; `CheckpointError`, before a weight is read, unless they are those `wanted`."""
    if wrong := differences(wanted, shapes_of(canonical(list_tensors(folder, HF_WEIGHTS)))):
        raise CheckpointError(f"{folder}: {wrong[0]}")
    return canonical(load_tensors(folder, str(device), dtype, HF_WEIGHTS))
