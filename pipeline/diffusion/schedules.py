"""Noise schedules as pure functions of time, with their inverses.

Time runs from t = 1 (noise) to t = 0 (data); x = alpha(t) x0 + sigma(t) eps; lam = log(alpha / sigma). All
values are float64 on the host. The forward process of a schedule is dx = f x dt + g dw; `rates` gives f and
g^2.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from safelight.pipeline.errors import InvalidParams

NUM_TRAIN_STEPS = 1000
# alpha below which a step in noise form would divide by almost zero: the start of flow and cosine schedules
NO_SIGNAL = 5e-3


class Schedule(Protocol):
    """A noise schedule; `family` is `vp`, `flow` or `ve`, by which solvers say where they are defined."""

    @property
    def family(self) -> str: ...

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Signal and noise scales (alpha, sigma) at time t in 0..1."""

    def rates(self, t: float) -> tuple[float, float]:
        """f and g^2 of the forward process, per unit of t; infinite where the process is singular."""

    def time_of(self, lam: float) -> float:
        """The time whose log(alpha / sigma) is `lam`, clamped to 0..1."""

    def timestep(self, t: float) -> float:
        """The time that the network is given for t (0..1000, as in training)."""

    def warp(self, t: float) -> float:
        """The time that replaces t of an evenly spaced grid; monotone, keeps 0 and 1."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): alpha = 1 - t, sigma = t.

    A `shift` above 1 moves the times of grids towards the noise.

    Raises `InvalidParams` for a shift that is not positive.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise InvalidParams("shift", f"shift must be positive, got {self.shift}")

    @property
    def family(self) -> str:
        return "flow"

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return 1.0 - t, t

    def rates(self, t: float) -> tuple[float, float]:
        if t == 1.0:
            return -math.inf, math.inf
        return -1.0 / (1.0 - t), 2.0 * t / (1.0 - t)

    def time_of(self, lam: float) -> float:
        small = math.exp(-abs(lam))  # 1 / (1 + exp(lam)), without overflow or cancellation
        return (small if lam > 0 else 1.0) / (1.0 + small)

    def timestep(self, t: float) -> float:
        return NUM_TRAIN_STEPS * t

    def warp(self, t: float) -> float:
        """Esser et al. 2024 (SD3, arXiv:2403.03206), section 5.3.2."""
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)


@dataclass(frozen=True, slots=True)
class VariancePreserving:
    """DDPM's chain of 1000 steps in continuous time.

    t = k / 1000 after k steps, and log alpha_bar is linear between them. `kind`: `linear` (Ho et al. 2020,
    arXiv:2006.11239), `scaled_linear` (Stable Diffusion), `cosine` (Nichol and Dhariwal 2021,
    arXiv:2102.09672, betas clipped at 0.999). Raises `InvalidParams` for any other.
    """

    kind: str = "linear"

    def __post_init__(self) -> None:
        if self.kind not in _BETAS:
            raise InvalidParams(
                "schedule", f"beta schedule {self.kind!r} is unknown; allowed: {', '.join(_BETAS)}"
            )

    @property
    def family(self) -> str:
        return "vp"

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        log_alpha_bar = _interpolate(_log_alpha_bars(self.kind), t * NUM_TRAIN_STEPS)
        return math.exp(0.5 * log_alpha_bar), math.sqrt(-math.expm1(log_alpha_bar))

    def rates(self, t: float) -> tuple[float, float]:
        """f = d log(alpha) / dt and g^2 = -2 f (Song et al. 2021, arXiv:2011.13456, eq. 11).

        Constant within a training step.
        """
        logs = _log_alpha_bars(self.kind)
        step = min(max(math.ceil(t * NUM_TRAIN_STEPS - 1e-9), 1), NUM_TRAIN_STEPS)
        f = 0.5 * NUM_TRAIN_STEPS * (logs[step] - logs[step - 1])
        return f, -2.0 * f

    def time_of(self, lam: float) -> float:
        logs = _log_alpha_bars(self.kind)
        log_alpha_bar = -_softplus(-2.0 * lam)
        if log_alpha_bar <= logs[-1]:
            return 1.0
        k = max(1, bisect_left(logs, -log_alpha_bar, key=lambda v: -v))  # between training steps k - 1 and k
        return (k - 1 + (logs[k - 1] - log_alpha_bar) / (logs[k - 1] - logs[k])) / NUM_TRAIN_STEPS

    def timestep(self, t: float) -> float:
        return NUM_TRAIN_STEPS * t - 1.0  # networks count their 1000 steps from 0

    def warp(self, t: float) -> float:
        return t


@dataclass(frozen=True, slots=True)
class VarianceExploding:
    """alpha = 1, sigma geometric in t from `sigma_min` to `sigma_max` (arXiv:2011.13456, eq. 9).

    sigma(0) = 0: time 0 is the data, with the paper's jump to sigma_min just above it. Raises `InvalidParams`
    unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InvalidParams(
                "schedule", f"0 < sigma_min < sigma_max is needed, got {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def family(self) -> str:
        return "ve"

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return 1.0, 0.0 if t == 0.0 else self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def rates(self, t: float) -> tuple[float, float]:
        return 0.0, 2.0 * math.log(self.sigma_max / self.sigma_min) * self.alpha_sigma(t)[1] ** 2

    def time_of(self, lam: float) -> float:
        t = (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return min(max(t, 0.0), 1.0)

    def timestep(self, t: float) -> float:
        return NUM_TRAIN_STEPS * t

    def warp(self, t: float) -> float:
        return t


def lam(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), half the log signal-to-noise ratio; infinite at the ends of time."""
    if sigma == 0.0:
        return math.inf
    return -math.inf if alpha == 0.0 else math.log(alpha / sigma)


def is_noise(alpha: float) -> bool:
    """Whether too little signal is left for a step in noise form, and for a model value worth keeping."""
    return alpha < NO_SIGNAL


def noise_fraction(schedule: Schedule, t: float) -> float:
    """sigma / (alpha + sigma) at time t.

    Over this variable, called tau, the path of x / (alpha + sigma) is a straight line on every schedule.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    return sigma / (alpha + sigma)


def _linear_betas() -> list[float]:
    return [1e-4 + (0.02 - 1e-4) * i / (NUM_TRAIN_STEPS - 1) for i in range(NUM_TRAIN_STEPS)]


def _scaled_linear_betas() -> list[float]:
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return [(low + (high - low) * i / (NUM_TRAIN_STEPS - 1)) ** 2 for i in range(NUM_TRAIN_STEPS)]


def _cosine_betas() -> list[float]:
    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return [
        min(0.999, 1.0 - alpha_bar((i + 1) / NUM_TRAIN_STEPS) / alpha_bar(i / NUM_TRAIN_STEPS))
        for i in range(NUM_TRAIN_STEPS)
    ]


_BETAS = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "cosine": _cosine_betas}


@cache
def _log_alpha_bars(kind: str) -> tuple[float, ...]:
    """log alpha_bar after 0 to 1000 training steps, strictly decreasing."""
    logs = [0.0]
    for beta in _BETAS[kind]():
        logs.append(logs[-1] + math.log1p(-beta))
    return tuple(logs)


def _interpolate(values: Sequence[float], position: float) -> float:
    below = min(int(position), len(values) - 2)
    return values[below] + (position - below) * (values[below + 1] - values[below])


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
