"""Timestep spacings: rules that place a solver's steps on a strictly decreasing grid of times from 1 to 0.

Every grid starts at t = 1, because a sample starts from pure noise. The published form of `leading`, which
checkpoints inherit from Stable Diffusion's configuration, starts too late (at 901 of 1000 with ten steps) and
would silently give wrong images; here its first time is moved to 1. All values are float64 on the host.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS, Schedule, lam
from safelight.pipeline.errors import InvalidParams

KARRAS_RHO = 7.0
FIRST_TRAINED = 1.0 / NUM_TRAIN_STEPS  # the time of least noise in training; logarithmic spacings end here
LAST_FINITE = 1.0 - FIRST_TRAINED  # where logarithmic spacings start if lam(1) is infinite


def make_grid(schedule: Schedule, num_steps: int, spacing: str = "trailing") -> tuple[float, ...]:
    """`num_steps` + 1 strictly decreasing times from 1 to 0, by the rule `spacing`, a key of `SPACINGS`.

    Raises `InvalidParams` for an unknown spacing, or a number of steps that it does not allow.
    """
    if spacing not in SPACINGS:
        raise InvalidParams(
            "timestep_spacing", f"timestep_spacing {spacing!r} is unknown; allowed: {', '.join(SPACINGS)}"
        )
    if num_steps < 1:
        raise InvalidParams("num_steps", f"num_steps must be at least 1, got {num_steps}")
    return (*SPACINGS[spacing](schedule, num_steps), 0.0)


def check_grid(times: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """`times` as a tuple, if they are a grid of `num_steps` steps: strictly decreasing, within 0..1.

    Raises `InvalidParams` if they are not.
    """
    if num_steps < 1:
        raise InvalidParams("grid", f"a grid has at least two times, got {tuple(times)}")
    if len(times) != num_steps + 1:
        raise InvalidParams(
            "grid", f"a grid of {num_steps} steps has {num_steps + 1} times, got {len(times)}"
        )
    if not all(t > t_next for t, t_next in pairwise(times)):  # false for NaN
        raise InvalidParams("grid", f"grid must be strictly decreasing, got {tuple(times)}")
    if not (times[-1] >= 0.0 and times[0] <= 1.0):
        raise InvalidParams("grid", f"grid must lie between 1 and 0, got {tuple(times)}")
    return tuple(times)


def trailing(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps of t, counted back from the noise (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    return [schedule.warp(1.0 - i / num_steps) for i in range(num_steps)]


def leading(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal whole training steps counted from the data, the first time moved to 1 (SD, offset 1)."""
    stride = NUM_TRAIN_STEPS // num_steps
    if num_steps >= NUM_TRAIN_STEPS:
        raise InvalidParams(
            "num_steps", f"num_steps must be under {NUM_TRAIN_STEPS} for leading, got {num_steps}"
        )
    times = [(i * stride + 2) / NUM_TRAIN_STEPS for i in reversed(range(num_steps))]
    return [1.0, *(schedule.warp(min(t, LAST_FINITE)) for t in times[1:])]


def linspace(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps from the last trained time to the first (Ho et al. 2020, arXiv:2006.11239), both included.

    On a schedule that warps times, the first trained time is warped twice, as in the code of Stable Diffusion
    3's authors and in diffusers' `FlowMatchEulerDiscreteScheduler`.
    """
    last = schedule.warp(FIRST_TRAINED)
    return [schedule.warp(1.0 + i / max(1, num_steps - 1) * (last - 1.0)) for i in range(num_steps)]


def quadratic(schedule: Schedule, num_steps: int) -> list[float]:
    """Squares of equal steps down to the first trained time, dense near the data.

    Song et al. 2020 (arXiv:2010.02502), appendix D.2.
    """
    last = math.sqrt(FIRST_TRAINED) - 1.0
    return [schedule.warp((1.0 + i / max(1, num_steps - 1) * last) ** 2) for i in range(num_steps)]


def uniform_lam(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps of lam (Lu et al. 2022, arXiv:2206.00927, section 3.4), then one to the data."""
    return _even_on_scale(schedule, num_steps, lambda lam: lam, lambda value: value)


def karras(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps of (sigma / alpha)^(1/7), then one to the data (Karras et al., arXiv:2206.00364, eq. 5)."""
    return _even_on_scale(
        schedule,
        num_steps,
        lambda lam: math.exp(-lam / KARRAS_RHO),
        lambda value: -KARRAS_RHO * math.log(value),
    )


SPACINGS: dict[str, Callable[[Schedule, int], list[float]]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "uniform_lam": uniform_lam,
    "karras": karras,
    "quadratic": quadratic,
}


def _even_on_scale(
    schedule: Schedule, num_steps: int, scale: Callable[[float], float], inverse: Callable[[float], float]
) -> list[float]:
    """Times at equal steps of `scale`(lam) between the finite ends of lam, with the first time moved to 1.

    `inverse` is the inverse function of `scale`.
    """
    first = lam(*schedule.alpha_sigma(1.0))
    low = scale(first if math.isfinite(first) else lam(*schedule.alpha_sigma(LAST_FINITE)))
    high = scale(lam(*schedule.alpha_sigma(FIRST_TRAINED)))
    values = [low + i / max(1, num_steps - 1) * (high - low) for i in range(1, num_steps)]
    return [1.0, *(schedule.time_of(inverse(value)) for value in values)]
