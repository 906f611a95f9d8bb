"""Lazy access to the text encoders' modules: each imports its library only when its files are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safelight.models.checkpoints.tensors import PartFiles


def open_clip_files() -> PartFiles:
    """The files of an open_clip text tower."""
    from safelight.models.text.open_clip_folder import FILES

    return FILES


def hf_clip_files() -> PartFiles:
    """The files of a CLIP text tower in transformers' layout."""
    from safelight.models.text.hf_clip import FILES

    return FILES


def t5_files() -> PartFiles:
    """The files of a T5 encoder in transformers' layout."""
    from safelight.models.text.t5 import FILES

    return FILES
