"""What a reference solver is given: the data that the network predicts, a schedule, a grid, and noise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule, is_noise, lam


@dataclass(frozen=True, slots=True)
class Problem:
    """`denoise(x, t)` is x0 (C, H, W) float64 for x (C, H, W) at time t; `noise(k)` is z of evaluation k."""

    denoise: Callable[[Tensor, float], Tensor]
    schedule: Schedule
    grid: tuple[float, ...]
    noise: Callable[[int], Tensor]
    lower_order_final: bool = True

    @property
    def steps(self) -> Iterator[tuple[float, float]]:
        """(t, t') of every step."""
        return pairwise(self.grid)

    @property
    def num_steps(self) -> int:
        return len(self.grid) - 1

    def alpha(self, t: float) -> float:
        return self.schedule.alpha_sigma(t)[0]

    def sigma(self, t: float) -> float:
        return self.schedule.alpha_sigma(t)[1]

    def lam(self, t: float) -> float:
        return lam(*self.schedule.alpha_sigma(t))

    def is_noise(self, t: float) -> bool:
        """Whether a step from t is Euler's and leaves no history, because no signal is left there."""
        return is_noise(self.alpha(t))

    def eps(self, x: Tensor, t: float) -> Tensor:
        """The noise in x that the predicted data leaves over."""
        return (x - self.alpha(t) * self.denoise(x, t)) / self.sigma(t)
