"""Which tower reads for a family."""

from pathlib import Path

import torch

from models.folder import CheckpointError, read_json
from models.registry import Family
from models.text import clip, sd3
from models.text.clip import ClipTextTower
from models.text.label import LabelTower
from models.text.reading import TextTower
from models.text.sd3 import Sd3Towers
from models.text.t5 import T5EncoderConfig, T5Tower


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


def check_fit(family: Family, folder: Path) -> None:
    """Raise `CheckpointError` if the transformer reads other text than the text parts of `folder` give."""
    first = family.parts[0]
    if family.has_classes:
        return
    if first.kind == "clip":
        sd3.fitting_sizes(folder)
        return
    reads = clip.read_width if first.kind == "open_clip" else _read_t5_width
    width, wanted = reads(folder / first.folder), read_json(folder / "transformer" / "config.json").get("caption_channels")
    if width != wanted:
        raise CheckpointError(f"{folder}: the transformer reads text of width {wanted}, the {first.folder} has {width}")


def _read_t5_width(folder: Path) -> int:
    return T5EncoderConfig.read(folder).d_model
