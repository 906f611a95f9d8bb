"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) as rows: which a sample needs, how they combine.

The convention is the market's: uncond + w (cond - uncond). w = 1 is off, w = 0 is unconditional; the paper's own w is
ours minus 1. No torch at import: the gateway asks `needs_uncond`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def needs_cond(guidance_scale: float) -> bool:
    """Whether a sample at this scale evaluates the network on its prompt."""
    return guidance_scale != 0.0


def needs_uncond(guidance_scale: float) -> bool:
    """Whether a sample at this scale evaluates the network on its negative (or empty) prompt."""
    return guidance_scale != 1.0


def combine(cond: "Tensor", uncond: "Tensor", scale: "Tensor") -> "Tensor":
    """uncond + scale (cond - uncond) with a scale a sample: cond, uncond (S, C, H, W), scale (S, 1, 1, 1).

    A sample of one row passes that row as both, and gets it back unchanged whatever its scale.
    """
    return uncond + scale * (cond - uncond)
