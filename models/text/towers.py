"""Which tower reads for a family."""

from pathlib import Path

import torch

from safelight.models.checkpoints.families import Family
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.label import LabelTower
from safelight.models.text.reading import TextTower
from safelight.models.text.sd3 import Sd3Towers
from safelight.models.text.t5 import T5Tower


def load_tower(family: Family, folder: Path, device: torch.device, dtype: torch.dtype) -> TextTower:
    """The text parts of the checkpoint in `folder`, and nothing else of it; raise `CheckpointError` naming what is wrong.

    The embedded tower is small and always in float32 on the processor.
    """
    if family.has_classes:
        return LabelTower(folder)
    first = family.parts[0]
    if first.kind == "open_clip":
        return ClipTextTower(folder / first.folder)
    if first.kind == "clip":
        return Sd3Towers(folder, device, dtype)
    if first.tokenizer is None or family.text_tokens is None:
        raise TypeError(f"family {family.name} says too little of its text encoder")
    return T5Tower(folder / first.folder, folder / first.tokenizer, family.text_tokens, device, dtype)
