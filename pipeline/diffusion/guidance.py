"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): rows per tick and their combination.

Guidance with scale w is uncond + w (cond - uncond), as in most libraries: w = 1 is off, w = 0 is
unconditional. The paper's w is this w minus 1. Imports no torch, because the gateway calls `needs_uncond`.

Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487) is left out: it clips pixels to their known
range, and latents have no such range.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Guide:
    """Guidance at one tick: its scale, and whether it reuses the latest cond - uncond difference."""

    scale: float
    reuses: bool = False

    @property
    def mixes(self) -> bool:
        """Whether this tick combines two predictions."""
        return needs_cond(self.scale) and needs_uncond(self.scale)

    @property
    def rows(self) -> tuple[bool, bool]:
        """Whether the network is evaluated on the prompt, and on the negative prompt."""
        return needs_cond(self.scale), needs_uncond(self.scale) and not self.reuses


def guides(
    times: Iterable[float], guidance_scale: float, interval: tuple[float, float], stride: int
) -> tuple[Guide, ...]:
    """The guidance of every tick, given the ticks' times.

    Of the ticks that mix two predictions every `stride`-th, from the first on, evaluates both. The others
    evaluate only the prompt and reuse the latest difference, as does the CFG-Cache of FasterCache (Lv et al.
    2024, arXiv:2410.19355), here without its frequency weights. The result depends on no other sample, so an
    image's bits do not either.
    """
    result: list[Guide] = []
    num_mixing = 0
    for t in times:
        guide = Guide(scale_at(t, guidance_scale, interval))
        if guide.mixes:
            guide = Guide(guide.scale, reuses=num_mixing % stride > 0)
            num_mixing += 1
        result.append(guide)
    return tuple(result)


def scale_at(t: float, guidance_scale: float, interval: tuple[float, float]) -> float:
    """The scale in effect at time t: `guidance_scale` within `interval` (both ends included), 1 outside.

    Kynkaanniemi et al. 2024 (arXiv:2404.07724), with times (1 noise, 0 data) in place of their noise levels.
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
    """uncond + scale (cond - uncond), with a scale per sample.

    Shapes: cond and uncond (S, C, H, W), scale (S, 1, 1, 1). A sample with one row passes it as both
    predictions and gets it back unchanged at any scale.
    """
    return uncond + scale * (cond - uncond)


def rescale(guided: "Tensor", cond: "Tensor", phi: "Tensor") -> "Tensor":
    """Rescale `guided` towards the standard deviation of `cond` by the share `phi`, in 0..1.

    Shapes: guided and cond (S, C, H, W), phi (S, 1, 1, 1). Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16.
    phi = 0 keeps every bit. A sample's sums run over its own elements in one fixed order, so its bits do not
    depend on its batch-mates.
    """
    ratio = (_deviation(cond) / _deviation(guided))[:, None, None, None]
    return guided.where(phi == 0.0, guided * (1.0 + phi * (ratio - 1.0)))


def _deviation(x: "Tensor") -> "Tensor":
    """Standard deviation (S,) of each sample of x (S, C, H, W)."""
    flat = x.flatten(1)
    centred = flat - (_sum(flat) / flat.shape[1])[:, None]
    return (_sum(centred.square()) / flat.shape[1]).sqrt()


def _sum(x: "Tensor") -> "Tensor":
    """Row sums (S,) of x (S, N), by adding halves elementwise.

    A library's sum may split its work by the number of samples, which would change the bits.
    """
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        rest = x[:, 2 * half :]
        x = x[:, :half] + x[:, half : 2 * half]
        if rest.shape[1]:
            x[:, 0] += rest[:, 0]
    return x[:, 0]
