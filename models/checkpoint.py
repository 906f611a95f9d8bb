"""Strict loading of diffusers-layout folders: networks are built empty, then filled from safetensors, every tensor checked.

No pickle is ever read.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.folder import CheckpointError, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLIP_WEIGHTS = "open_clip_model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_tensors(folder: Path, device: str, dtype: torch.dtype, weights: str = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of a part of a checkpoint (one file or a sharded index), streamed to `device` in `dtype`."""
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder, weights):
        try:
            with safe_open(file, framework="pt", device=device) as opened:
                tensors |= {key: opened.get_tensor(key).to(dtype) for key in opened.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """Assign `tensors` to `module`, whatever it held; raise `CheckpointError` unless names and shapes all match."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for problem, names in (("missing", wanted.keys() - tensors.keys()), ("not expected", tensors.keys() - wanted.keys())):
        if names:
            first, more = sorted(names)[0], f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"{folder}: tensor {first} is {problem}{more}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{folder}: tensor {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _weight_files(folder: Path, weights: str) -> list[Path]:
    single, index = folder / weights, folder / f"{weights}.index.json"
    if single.exists():
        return [single]
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise CheckpointError(f"{folder / missing[0]} is missing, although the index names it")
        return [folder / name for name in names]
    pickles = sorted(f.name for f in folder.glob("*") if f.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(f"{folder / pickles[0]} is a pickle, which is never loaded; convert it to {weights}")
    raise CheckpointError(f"{single} is missing")
