"""The problem that a reference solver solves: a denoiser, a schedule, a grid and noise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule, is_noise, lam


@dataclass(frozen=True, slots=True)
class Problem:
    """A denoiser on a grid of times of a schedule.

    `denoise(x, t)` predicts x0 (C, H, W), float64, from x (C, H, W) at time t.
    `noise(k)` is z (C, H, W) of evaluation k.
    """

    denoise: Callable[[Tensor, float], Tensor]
    schedule: Schedule
    grid: tuple[float, ...]
    noise: Callable[[int], Tensor]
    lower_order_final: bool = True

    @property
    def steps(self) -> Iterator[tuple[float, float]]:
        """The times (t, t') of every step."""
        return pairwise(self.grid)

    @property
    def num_steps(self) -> int:
        return len(self.grid) - 1

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return self.schedule.alpha_sigma(t)

    def alpha(self, t: float) -> float:
        return self.schedule.alpha_sigma(t)[0]

    def sigma(self, t: float) -> float:
        return self.schedule.alpha_sigma(t)[1]

    def lam(self, t: float) -> float:
        return lam(*self.schedule.alpha_sigma(t))

    def is_noise(self, t: float) -> bool:
        """Whether (almost) no signal is left at t, so that a step from t is Euler's and leaves no history."""
        return is_noise(self.alpha(t))

    def eps(self, x: Tensor, t: float) -> Tensor:
        """The noise in x, given the predicted data."""
        return (x - self.alpha(t) * self.denoise(x, t)) / self.sigma(t)
