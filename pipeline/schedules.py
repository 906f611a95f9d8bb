"""Noise schedules as pure functions of time, and the grids of times that solvers step over.

Time runs from t = 1 (noise) to t = 0 (data); x = alpha(t) x0 + sigma(t) eps. Everything here is float64 on the host.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

NUM_TRAIN_STEPS = 1000


class Schedule(Protocol):
    """A noise schedule; `timestep` is the time as the network was trained to see it (0..1000)."""

    def alpha_sigma(self, t: float) -> tuple[float, float]: ...

    def timestep(self, t: float) -> float: ...

    def grid(self, num_steps: int) -> tuple[float, ...]: ...


@dataclass(frozen=True, slots=True)
class Flow:
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): alpha = 1 - t, sigma = t; `shift` bends the grid to noise."""

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return 1.0 - t, t

    def timestep(self, t: float) -> float:
        return NUM_TRAIN_STEPS * t

    def grid(self, num_steps: int) -> tuple[float, ...]:
        """Trailing times, shifted (SD3, arXiv:2403.03206, section 5.3.2): num_steps + 1 values from 1 to 0."""
        return tuple(self.shift * t / (1.0 + (self.shift - 1.0) * t) for t in trailing(num_steps))


@dataclass(frozen=True, slots=True)
class VariancePreserving:
    """DDPM's discrete chain of 1000 steps made continuous: t = k / 1000 after k steps, log alpha_bar linear between.

    `kind`: `linear` (Ho et al. 2020, arXiv:2006.11239), `scaled_linear` (Stable Diffusion), `cosine` (Nichol and
    Dhariwal 2021, arXiv:2102.09672, betas clipped at 0.999).
    """

    kind: str = "linear"

    def __post_init__(self) -> None:
        if self.kind not in _BETAS:
            raise ValueError(f"beta schedule {self.kind!r} is unknown; allowed: {', '.join(_BETAS)}")

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        log_alpha_bar = _interpolate(_log_alpha_bars(self.kind), t * NUM_TRAIN_STEPS)
        return math.exp(0.5 * log_alpha_bar), math.sqrt(-math.expm1(log_alpha_bar))

    def timestep(self, t: float) -> float:
        return NUM_TRAIN_STEPS * t - 1.0  # networks count their 1000 steps from 0

    def grid(self, num_steps: int) -> tuple[float, ...]:
        """Trailing times: num_steps + 1 values from 1 to 0, so that the first step starts from pure noise."""
        return trailing(num_steps)


def trailing(num_steps: int) -> tuple[float, ...]:
    """num_steps + 1 equally spaced times from 1 to 0."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return tuple(1.0 - i / num_steps for i in range(num_steps)) + (0.0,)


def lam(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), half the log signal-to-noise ratio; infinite at the ends of time."""
    if sigma == 0.0:
        return math.inf
    return -math.inf if alpha == 0.0 else math.log(alpha / sigma)


def _linear_betas() -> list[float]:
    return [1e-4 + (0.02 - 1e-4) * i / (NUM_TRAIN_STEPS - 1) for i in range(NUM_TRAIN_STEPS)]


def _scaled_linear_betas() -> list[float]:
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return [(low + (high - low) * i / (NUM_TRAIN_STEPS - 1)) ** 2 for i in range(NUM_TRAIN_STEPS)]


def _cosine_betas() -> list[float]:
    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(0.999, 1.0 - alpha_bar((i + 1) / NUM_TRAIN_STEPS) / alpha_bar(i / NUM_TRAIN_STEPS)) for i in range(NUM_TRAIN_STEPS)]


_BETAS = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "cosine": _cosine_betas}


@cache
def _log_alpha_bars(kind: str) -> tuple[float, ...]:
    logs = [0.0]
    for beta in _BETAS[kind]():
        logs.append(logs[-1] + math.log1p(-beta))
    return tuple(logs)


def _interpolate(values: Sequence[float], position: float) -> float:
    below = min(int(position), len(values) - 2)
    return values[below] + (position - below) * (values[below + 1] - values[below])
