"""Weights of a text encoder in transformers' layout, loaded strictly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import Shapes, differences, list_tensors, read_stored, shapes_of
from safelight.models.checkpoints.weight_files import HF_WEIGHTS as HF_WEIGHTS


def load_exactly(
    folder: Path,
    expected: Shapes,
    canonical_names: Callable[[dict[str, Any]], dict[str, Any]],
    device: torch.device | str,
    dtype: torch.dtype,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
) -> dict[str, Tensor]:
    """Load the weights in `folder`.

    Args:
        folder: the text encoder's folder.
        expected: names and shapes that the encoder's configuration asks for.
        canonical_names: takes a file's tensors, by name, to the names in `expected`.
        device: where the tensors are put.
        dtype: a floating-point dtype that the tensors are converted to.
        options: which variant of the files is read.

    Returns:
        The tensors by canonical name.

    Raises:
        CheckpointError: before a weight is read, if the tensors are not exactly those `expected`.
    """
    stored = canonical_names(list_tensors(folder, HF_WEIGHTS, options, dtype))
    if faults := differences(expected, shapes_of(stored)):
        raise CheckpointError(f"{folder}: {faults[0]}")
    return read_stored(stored, str(device), dtype)
