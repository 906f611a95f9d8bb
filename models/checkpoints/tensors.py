"""Strict loading of diffusers-layout folders: networks are built empty, then filled from safetensors, every tensor checked.

What a file holds is known from its header, so that a folder can be judged without reading a weight. No pickle is ever read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLIP_WEIGHTS = "open_clip_model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READABLE = ("F64", "F32", "F16", "BF16", "I64")  # integers: position numbers, in older files

# Attention in diffusers' autoencoders had other names, which published files still have
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' word for it


def list_tensors(folder: Path, weights: str = WEIGHTS) -> dict[str, Stored]:
    """All tensors of a part of a checkpoint (one file or a sharded index) by their present names, from the files' headers."""
    found: dict[str, Stored] = {}
    for file, promised in _weight_files(folder, weights).items():
        held = _read_header(file)
        if twice := found.keys() & held.keys():
            raise CheckpointError(f"{file}: tensor {min(twice)} is also in {found[min(twice)].file.name}")
        if absent := {_present_name(name) for name in promised} - held.keys():
            raise CheckpointError(f"{file}: tensor {min(absent)} is missing, although the index names it")
        found |= held
    return found


def load_tensors(folder: Path, device: str, dtype: torch.dtype, weights: str = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of a part of a checkpoint, streamed to `device` in `dtype` one by one."""
    return read_stored(list_tensors(folder, weights), device, dtype)


def read_stored(stored: Mapping[str, Stored], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that lie as `stored` says."""
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        here = {key: tensor for key, tensor in stored.items() if tensor.file == file}
        try:
            with safe_open(file, framework="pt", device=device) as opened:
                tensors |= {key: opened.get_tensor(tensor.name).to(dtype) for key, tensor in here.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} {_why_unreadable(file, error)}") from None
    return tensors


def differences(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How the tensors `found` are not those `wanted`, by names and shapes: a line each for what is missing, too much or misshapen."""
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    first = f"has shape {found[wrong[0]]}, expected {wanted[wrong[0]]}" if wrong else ""
    problems = (
        ("is missing", sorted(wanted.keys() - found.keys())),
        ("is not expected", sorted(found.keys() - wanted.keys())),
    )
    return [
        f"tensor {names[0]} {problem}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        for problem, names in (*problems, (first, wrong))
        if names
    ]


def load_into(
    module: nn.Module, folder: Path, device: str, dtype: torch.dtype, weights: str = WEIGHTS
) -> nn.Module:
    """Fill `module` with the tensors of a part of a checkpoint; a folder with others is refused before a weight is read."""
    stored = list_tensors(folder, weights)
    if wrong := differences(shapes_of(module.state_dict()), shapes_of(stored)):
        raise CheckpointError(f"{folder}: {wrong[0]}")
    return fill(module, read_stored(stored, device, dtype), folder)


def fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """Assign `tensors` to `module`, whatever it held; raise `CheckpointError` unless names and shapes all match."""
    if wrong := differences(shapes_of(module.state_dict()), shapes_of(tensors)):
        raise CheckpointError(f"{folder}: {wrong[0]}")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def shapes_of(tensors: Mapping[str, Tensor | Stored]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _read_header(file: Path) -> dict[str, Stored]:
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            held = [
                Stored(file, name, tuple(piece.get_shape()), piece.get_dtype())
                for name, piece in slices.items()
            ]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} {_why_unreadable(file, error)}") from None
    for tensor in held:
        if tensor.dtype not in READABLE:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} is stored as {tensor.dtype}, only {', '.join(READABLE)} are read"
            )
    return {_present_name(tensor.name): tensor for tensor in held}


def _why_unreadable(file: Path, error: Exception) -> str:
    """In words, what `file` is instead of weights, as far as its first bytes tell; safetensors says of all sorts that they are missing."""
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


def _present_name(name: str) -> str:
    return OLD_ATTENTION.sub(lambda found: f"{found[1]}.{NEW_ATTENTION[found[2]]}.", name)


def _weight_files(folder: Path, weights: str) -> dict[Path, list[str]]:
    """The files to read, and the tensors that an index says are in each."""
    if (folder / weights).exists():
        return {folder / weights: []}
    if (folder / f"{weights}.index.json").exists():
        return _read_index(folder / f"{weights}.index.json")
    stem, suffix = weights.rsplit(".", 1)
    variants = _variants(folder, rf"{re.escape(stem)}\.(\w+)\.{suffix}") | _variants(
        folder, rf"{re.escape(weights)}\.index\.(\w+)\.json"
    )
    if len(variants) > 1:
        raise CheckpointError(
            f"{folder / weights} is missing, and which of the variants {', '.join(sorted(variants))} to read is not said"
        )
    for file in variants.values():
        return _read_index(file) if file.suffix == ".json" else {file: []}
    if pickles := sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES):
        raise CheckpointError(
            f"{folder / pickles[0]} is a pickle, which is never loaded; convert it to {weights}"
        )
    raise CheckpointError(f"{folder / weights} is missing")


def _variants(folder: Path, pattern: str) -> dict[str, Path]:
    """Files such as `model.fp16.safetensors` by what stands between: the same weights in another dtype."""
    matches = ((re.fullmatch(pattern, file.name), file) for file in folder.glob("*"))
    return {match[1]: file for match, file in matches if match}


def _read_index(index: Path) -> dict[Path, list[str]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map")
    files: dict[Path, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is not a safetensors file beside it")
        files.setdefault(index.parent / name, []).append(tensor)
    for file in sorted(files):
        if not file.exists():
            raise CheckpointError(f"{file} is missing, although the index names it")
    return files
