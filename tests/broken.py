"""Checkpoints with a fault."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from safelight.pipeline.catalog.served_models import find_model


def tiny_without(tensor: str, folder: Path) -> Path:
    """A copy of the `tiny` model in `folder` that lacks one `tensor` of its transformer."""
    broken = folder / "broken"
    shutil.copytree(find_model("tiny").path, broken)
    [weights] = (broken / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    del tensors[tensor]
    save_file(tensors, weights)
    return broken
