"""Strict loading of weights: networks are built empty, then filled from safetensors, every tensor checked.

The header of a file names its tensors, so a folder can be checked without reading a weight.
No pickle is ever read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from safelight.models.checkpoints.int8_rows import ROW_SCALE, restore_rows
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.missing_files import describe_missing
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.weight_files import CLIP_WEIGHTS as CLIP_WEIGHTS
from safelight.models.checkpoints.weight_files import WEIGHTS as WEIGHTS
from safelight.models.checkpoints.weight_files import find_weight_files

READABLE = ("F64", "F32", "F16", "BF16", "I64")  # I64: position numbers, in older files
INT8 = "I8"  # readable with row scales

# Older names of attention in diffusers' autoencoders, which published files still have.
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as "BF16"
    row_scale: str = ""  # the name of its row scales, if it is stored in int8


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The files of one kind of part of a checkpoint, and how to check them.

    `expected_shapes` takes the part's folder and returns the tensors that its configuration asks for.
    `canonical_names` returns a file's tensors under the names in `expected_shapes`.
    `check_tokenizer` takes the folders of the part and of its tokenizer.
    `unknown_options` takes the part's folder and returns the keys of its configuration that are not known.
    All of them raise `CheckpointError`.
    """

    weights: str  # file name
    expected_shapes: Callable[[Path], Shapes]
    canonical_names: Callable[[dict[str, Any]], dict[str, Any]] = dict
    check_tokenizer: Callable[[Path, Path], object] | None = None
    unknown_options: Callable[[Path], tuple[str, ...]] | None = None


def list_tensors(
    folder: Path,
    weights: str = WEIGHTS,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    dtype: torch.dtype | None = None,
) -> dict[str, StoredTensor]:
    """All tensors of a part of a checkpoint (one file or a sharded index), from the files' headers.

    Keys are the names that diffusers uses now. `dtype` is what they are converted to, which may decide the
    variant.
    Raises `CheckpointError` for files that cannot be read or contradict their index.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, indexed_names in find_weight_files(folder, weights, options, dtype_name(dtype)).files.items():
        in_file = _read_header(file)
        if repeated := tensors.keys() & in_file.keys():
            name = min(repeated)
            raise CheckpointError(f"{file}: tensor {name} is also in {tensors[name].file.name}")
        if missing := {_current_name(name) for name in indexed_names} - in_file.keys():
            raise CheckpointError(f"{file}: tensor {min(missing)} is missing, although the index names it")
        tensors |= in_file
    return tensors


def read_stored(stored: Mapping[str, StoredTensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read the tensors in `stored` to `device` in `dtype`, under the same keys.

    Raises `CheckpointError` for a file that cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        in_file = {key: tensor for key, tensor in stored.items() if tensor.file == file}
        try:
            with safe_open(file, framework="pt", device=device) as opened:
                tensors |= {key: _read(opened, tensor).to(dtype) for key, tensor in in_file.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} {_why_unreadable(file, error)}") from None
    return tensors


def _read(opened: Any, stored: StoredTensor) -> Tensor:
    tensor: Tensor = opened.get_tensor(stored.name)
    return restore_rows(tensor, opened.get_tensor(stored.row_scale)) if stored.row_scale else tensor


def differences(expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How the shapes in `actual` differ from those `expected`.

    At most three lines: one each for tensors that are missing, are not expected, or have another shape.
    """
    misshapen = [name for name in expected if name in actual and actual[name] != expected[name]]
    shape = f"has shape {actual[misshapen[0]]}, expected {expected[misshapen[0]]}" if misshapen else ""
    problems = (
        ("is missing", sorted(expected.keys() - actual.keys())),
        ("is not expected", sorted(actual.keys() - expected.keys())),
    )
    return [
        f"tensor {names[0]} {problem}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        for problem, names in (*problems, (shape, misshapen))
        if names
    ]


def load_into(
    module: AnyModule,
    folder: Path,
    device: str,
    dtype: torch.dtype,
    weights: str = WEIGHTS,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
) -> AnyModule:
    """Fill `module` with the tensors of a part of a checkpoint.

    Args:
        module: a network, usually on the meta device.
        folder: the part's folder.
        device: where the tensors are put.
        dtype: what they are converted to.
        weights: the name of the weight file.
        options: which variant of the files is read.

    Returns:
        The module, in evaluation mode and without gradients.

    Raises:
        CheckpointError: before a weight is read, if the files hold other tensors than the module.
    """
    stored = list_tensors(folder, weights, options, dtype)
    if faults := differences(shapes_of(module.state_dict()), shapes_of(stored)):
        raise CheckpointError(f"{folder}: {faults[0]}")
    return fill(module, read_stored(stored, device, dtype), folder)


def fill(module: AnyModule, tensors: dict[str, Tensor], folder: Path) -> AnyModule:
    """Assign `tensors` to `module`, and return it in evaluation mode and without gradients.

    Raises `CheckpointError` about `folder` unless all names and shapes match.
    """
    if faults := differences(shapes_of(module.state_dict()), shapes_of(tensors)):
        raise CheckpointError(f"{folder}: {faults[0]}")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def shapes_of(tensors: Mapping[str, Tensor | StoredTensor]) -> Shapes:
    """The shapes of `tensors` by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def dtype_name(dtype: torch.dtype | None) -> str:
    """The name of `dtype` without "torch."; empty for None."""
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _read_header(file: Path) -> dict[str, StoredTensor]:
    if not file.exists():
        raise CheckpointError(f"{file} {describe_missing(file)}")
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            scales = {name: name + ROW_SCALE for name in slices if _has_row_scale(name, slices)}
            tensors = [
                StoredTensor(file, name, tuple(piece.get_shape()), piece.get_dtype(), scales.get(name, ""))
                for name, piece in slices.items()
                if name not in scales.values()
            ]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} {_why_unreadable(file, error)}") from None
    for tensor in tensors:
        if tensor.dtype not in READABLE and not tensor.row_scale:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} is stored as {tensor.dtype}, "
                f"only {', '.join(READABLE)} are read"
            )
    return {_current_name(tensor.name): tensor for tensor in tensors}


def _has_row_scale(name: str, slices: Mapping[str, Any]) -> bool:
    """Whether the tensor `name` is a matrix in int8 that has a scale for each row."""
    matrix, scale = slices[name], slices.get(name + ROW_SCALE)
    if scale is None or matrix.get_dtype() != INT8:
        return False
    return bool(scale.get_shape() == matrix.get_shape()[:1])


def _why_unreadable(file: Path, error: Exception) -> str:
    """What `file` holds instead of weights, judged by its first bytes.

    safetensors' own error calls files of many kinds missing.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(64).lstrip()
    except OSError as reason:
        return f"cannot be read: {reason.strerror}"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights: `git lfs pull` fetches them"
    if start.startswith(b"<"):
        return "is a web page, not the weights: the download was refused"
    return f"is not a readable safetensors file: {error}"


def _current_name(name: str) -> str:
    """The name that diffusers uses now for a tensor called `name` in a file."""
    return OLD_ATTENTION.sub(lambda match: f"{match[1]}.{NEW_ATTENTION[match[2]]}.", name)
