"""Folders of tiny models that share stages or do not."""

import shutil
from pathlib import Path

from safelight.models.find_checkpoint import ensure_tiny
from safelight.models.tiny import write_tiny


def write_tiny_model(folder: Path, seed: int, shares: tuple[str, ...] = ("text_encoder", "vae")) -> Path:
    """A tiny model with weights of its own, but for the parts that it shares with the preset `tiny`."""
    write_tiny(folder, seed)
    for part in shares:
        shutil.rmtree(folder / part)
        shutil.copytree(ensure_tiny() / part, folder / part)
    return folder
