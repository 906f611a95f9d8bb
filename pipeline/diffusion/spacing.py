"""Where the steps of a solver stand: a schedule and a rule become a strictly decreasing grid of times from 1 to 0.

Every grid starts at t = 1, because a sample starts from pure noise. In particular `leading`, as checkpoints inherit it from
Stable Diffusion's configuration, starts too late (at 901 of 1000 with ten steps) and would be wrong in silence: its first
time is moved to 1. Everything here is float64 on the host.
"""

import math
from collections.abc import Callable, Sequence

from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS, Schedule, lam
from safelight.pipeline.errors import InvalidParams

KARRAS_RHO = 7.0
FIRST_TRAINED = 1.0 / NUM_TRAIN_STEPS  # the least noise that a network has seen: where log-scales end
LAST_FINITE = 1.0 - FIRST_TRAINED  # where they start if lam(1) is infinite


def make_grid(schedule: Schedule, num_steps: int, spacing: str = "trailing") -> tuple[float, ...]:
    """`num_steps` + 1 times from 1 to 0, strictly decreasing.

    Raises `InvalidParams` for an unknown spacing or too few steps for it.
    """
    if spacing not in SPACINGS:
        raise InvalidParams(
            "timestep_spacing", f"timestep_spacing {spacing!r} is unknown; allowed: {', '.join(SPACINGS)}"
        )
    if num_steps < 1:
        raise InvalidParams("num_inference_steps", f"num_inference_steps must be at least 1, got {num_steps}")
    return (*SPACINGS[spacing](schedule, num_steps), 0.0)


def check_grid(times: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """A custom list of times, if it is a grid; raises `InvalidParams` saying what is wrong with it."""
    if num_steps < 1:
        raise InvalidParams("grid", f"a grid has at least two times, got {tuple(times)}")
    if len(times) != num_steps + 1:
        raise InvalidParams(
            "grid", f"a grid of {num_steps} steps has {num_steps + 1} times, got {len(times)}"
        )
    if not all(t > u for t, u in zip(times, times[1:], strict=False)):  # NaN is no time
        raise InvalidParams("grid", f"grid must be strictly decreasing, got {tuple(times)}")
    if not (times[-1] >= 0.0 and times[0] <= 1.0):
        raise InvalidParams("grid", f"grid must lie between 1 and 0, got {tuple(times)}")
    return tuple(times)


def trailing(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps counted back from the noisy end (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    return [schedule.warp(1.0 - i / num_steps) for i in range(num_steps)]


def leading(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal whole training steps counted from the clean end (Stable Diffusion, offset 1), the first moved to t = 1."""
    stride = NUM_TRAIN_STEPS // num_steps
    if num_steps >= NUM_TRAIN_STEPS:
        raise InvalidParams(
            "num_inference_steps",
            f"num_inference_steps must be under {NUM_TRAIN_STEPS} for leading, got {num_steps}",
        )
    times = [(i * stride + 2) / NUM_TRAIN_STEPS for i in reversed(range(num_steps))]
    return [1.0, *(schedule.warp(min(t, LAST_FINITE)) for t in times[1:])]


def linspace(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps from the last trained time to the first (Ho et al. 2020), both included.

    Where a schedule moves times, the first trained one has been moved before it is moved with the others: so Stable Diffusion 3
    is drawn by its authors and by diffusers' `FlowMatchEulerDiscreteScheduler`.
    """
    last = schedule.warp(FIRST_TRAINED)
    return [schedule.warp(1.0 + i / max(1, num_steps - 1) * (last - 1.0)) for i in range(num_steps)]


def quadratic(schedule: Schedule, num_steps: int) -> list[float]:
    """Squares of equal steps, dense near the data (Song et al. 2020, arXiv:2010.02502, appendix D.2), to the first trained time."""
    last = math.sqrt(FIRST_TRAINED) - 1.0
    return [schedule.warp((1.0 + i / max(1, num_steps - 1) * last) ** 2) for i in range(num_steps)]


def uniform_lam(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps of lam (Lu et al. 2022, arXiv:2206.00927, section 3.4), then one to the data."""
    return _between(schedule, num_steps, lambda lam: lam, lambda value: value)


def karras(schedule: Schedule, num_steps: int) -> list[float]:
    """Equal steps of (sigma / alpha)^(1/7) (Karras et al. 2022, arXiv:2206.00364, eq. 5), then one to the data."""
    return _between(
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


def _between(
    schedule: Schedule, num_steps: int, scale: Callable[[float], float], inverse: Callable[[float], float]
) -> list[float]:
    """Equal steps on `scale` of lam between the finite ends of a schedule; the first time is 1 itself."""
    first = lam(*schedule.alpha_sigma(1.0))
    low = scale(first if math.isfinite(first) else lam(*schedule.alpha_sigma(LAST_FINITE)))
    high = scale(lam(*schedule.alpha_sigma(FIRST_TRAINED)))
    values = [low + i / max(1, num_steps - 1) * (high - low) for i in range(1, num_steps)]
    return [1.0, *(schedule.time_of(inverse(value)) for value in values)]
