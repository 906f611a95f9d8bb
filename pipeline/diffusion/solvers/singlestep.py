"""Single-step solvers: several evaluations inside each step, nothing remembered from one step to the next.

Exponential Runge-Kutta in lam with h = lam' - lam. A step from next to pure noise or to pure data, where h is infinite
or nearly so, is an Euler step of one evaluation.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import GridPoint, SolverGrid, Tick


def dpm_2s(path: SolverGrid) -> list[Tick]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1 with r_1 = 1/2), on the noise: two ticks a step."""

    def step(now: GridPoint, s1: GridPoint, then: GridPoint) -> list[Tick]:
        h, r1 = then.lam - now.lam, (s1.lam - now.lam) / (then.lam - now.lam)
        phi_1 = then.sigma * math.expm1(h)
        b0 = -phi_1 / (2 * r1)
        last = Tick(
            s1.t, s1.timestep, *s1.noise, a=0.0, s=then.alpha / now.alpha, b=(b0, -phi_1 - b0, 0.0, 0.0)
        )
        return [_noise_tick(now, s1), last]

    return _each_step(path, (0.5,), step)


def dpm_3s(path: SolverGrid) -> list[Tick]:
    """DPM-Solver-3 (Lu et al. 2022, arXiv:2206.00927, algorithm 2, r_1 = 1/3 and r_2 = 2/3), on the noise: three ticks a step."""

    def step(now: GridPoint, s1: GridPoint, s2: GridPoint, then: GridPoint) -> list[Tick]:
        h = then.lam - now.lam
        r1, r2 = (s1.lam - now.lam) / h, (s2.lam - now.lam) / h
        d1 = -s2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
        b1 = -s2.sigma * math.expm1(r2 * h) - d1
        second = Tick(
            s1.t,
            s1.timestep,
            *s1.noise,
            a=0.0,
            s=s2.alpha / now.alpha,
            b=(d1, b1, 0.0, 0.0),
            e=1.0,
            push=True,
        )
        d2 = -then.sigma / r2 * (math.expm1(h) / h - 1)
        b2 = -then.sigma * math.expm1(h) - d2
        last = Tick(s2.t, s2.timestep, *s2.noise, a=0.0, s=then.alpha / now.alpha, b=(d2, 0.0, b2, 0.0))
        return [_noise_tick(now, s1), second, last]

    return _each_step(path, (1 / 3, 2 / 3), step)


def dpmpp_2s(path: SolverGrid) -> list[Tick]:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2), on the data: two ticks a step."""

    def step(now: GridPoint, s1: GridPoint, then: GridPoint) -> list[Tick]:
        h, r1 = then.lam - now.lam, (s1.lam - now.lam) / (then.lam - now.lam)
        phi_1 = -then.alpha * math.expm1(-h)
        b0 = phi_1 / (2 * r1)
        last = Tick(
            s1.t, s1.timestep, *s1.data, a=0.0, s=then.sigma / now.sigma, b=(b0, phi_1 - b0, 0.0, 0.0)
        )
        return [replace(ddim_tick(now, s1), d=1.0, push=True), last]

    return _each_step(path, (0.5,), step)


def _each_step(path: SolverGrid, fractions: tuple[float, ...], step: Callable[..., list[Tick]]) -> list[Tick]:
    """`step`(now, the points at `fractions` of its lam, then) for every step whose h is finite, an Euler step for the others."""
    ticks = []
    for i, (now, then) in enumerate(path.steps):
        if now.is_noise or then.is_data:
            ticks.append(ddim_tick(now, then))
        else:
            ticks += step(now, *path.inner_points(i, fractions), then)
    return ticks


def _noise_tick(now: GridPoint, then: GridPoint) -> Tick:
    """DPM-Solver-1, remembering where it started."""
    b0 = -then.sigma * math.expm1(then.lam - now.lam)
    return Tick(
        now.t, now.timestep, *now.noise, then.alpha / now.alpha, (b0, 0.0, 0.0, 0.0), d=1.0, push=True
    )
