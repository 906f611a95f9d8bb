"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) as rows: which a sample needs, how they combine.

The convention is the market's: uncond + w (cond - uncond). w = 1 is off, w = 0 is unconditional; the paper's own w is
ours minus 1. No torch at import: the gateway asks `needs_uncond`.

Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487) is not here: it clips pixels to their known range, and latents
have none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Guide:
    """What guidance asks of one tick: its scale, and whether it makes do with the difference of an earlier tick."""

    scale: float
    reuses: bool = False

    @property
    def mixes(self) -> bool:
        """Whether two predictions are combined."""
        return needs_cond(self.scale) and needs_uncond(self.scale)

    @property
    def rows(self) -> tuple[bool, bool]:
        """Whether the network is evaluated on the prompt, and on the negative prompt."""
        return needs_cond(self.scale), needs_uncond(self.scale) and not self.reuses


def guides(
    times: Iterable[float], guidance_scale: float, interval: tuple[float, float], stride: int
) -> tuple[Guide, ...]:
    """The guide of every tick. Of those that mix two predictions each `stride`-th evaluates both, from the first on.

    The others evaluate the prompt alone, and take the difference of the last that evaluated both: the residual that the
    CFG-Cache of FasterCache keeps (Lv et al. 2024, arXiv:2410.19355), without its weights by frequency. A tick depends on its
    own sample alone, so an image's bits do too.
    """
    found: list[Guide] = []
    mixing = 0
    for t in times:
        guide = Guide(scale_at(t, guidance_scale, interval))
        if guide.mixes:
            guide = Guide(guide.scale, reuses=mixing % stride > 0)
            mixing += 1
        found.append(guide)
    return tuple(found)


def scale_at(t: float, guidance_scale: float, interval: tuple[float, float]) -> float:
    """The scale in effect at time t: `guidance_scale` within `interval` (both ends included), 1 outside.

    Kynkaanniemi et al. 2024 (arXiv:2404.07724); their noise levels are our times, 1 noise to 0 data.
    """
    start, end = interval
    return guidance_scale if start <= t <= end else 1.0


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


def rescale(guided: "Tensor", cond: "Tensor", phi: "Tensor") -> "Tensor":
    """`guided` (S, C, H, W) drawn by `phi` (S, 1, 1, 1) in 0..1 to the standard deviation of `cond`; 0 leaves every bit.

    Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16. A sample's sums run over its own elements in one fixed order.
    """
    ratio = (_deviation(cond) / _deviation(guided))[:, None, None, None]
    return guided.where(phi == 0.0, guided * (1.0 + phi * (ratio - 1.0)))


def _deviation(x: "Tensor") -> "Tensor":
    """Standard deviation (S,) of each sample of x (S, C, H, W)."""
    flat = x.flatten(1)
    centred = flat - (_sum(flat) / flat.shape[1])[:, None]
    return (_sum(centred.square()) / flat.shape[1]).sqrt()


def _sum(x: "Tensor") -> "Tensor":
    """Sums (S,) of x (S, N) by halves, elementwise: a library's sum may split its work by how many samples there are."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        rest = x[:, 2 * half :]
        x = x[:, :half] + x[:, half : 2 * half]
        if rest.shape[1]:
            x[:, 0] += rest[:, 0]
    return x[:, 0]
