"""Single-step solvers: several evaluations within each step, and no memory of earlier steps.

Exponential Runge-Kutta in lam with h = lam' - lam. A step from (almost) pure noise or to pure data, where h
is infinite or almost so, is an Euler step of one evaluation.

A tick computes x' = a x + s y + b . m + c z and y' = d x + e y + f . m, where m are the saved predictions,
newest first, and `push` says whether its own prediction is saved (`table.py`).
"""

import math
from collections.abc import Callable
from dataclasses import replace

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import GridPoint, SolverGrid, Tick


def dpm_2s(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver-2 in noise form: two ticks per step.

    Lu et al. 2022 (arXiv:2206.00927), algorithm 1 with r_1 = 1/2.
    """

    def step(cur: GridPoint, s1: GridPoint, nxt: GridPoint) -> list[Tick]:
        h, r1 = nxt.lam - cur.lam, (s1.lam - cur.lam) / (nxt.lam - cur.lam)
        phi_1 = nxt.sigma * math.expm1(h)
        b0 = -phi_1 / (2 * r1)
        last = Tick(
            s1.t, s1.timestep, *s1.noise, a=0.0, s=nxt.alpha / cur.alpha, b=(b0, -phi_1 - b0, 0.0, 0.0)
        )
        return [_noise_tick(cur, s1), last]

    return _plan_steps(grid, (0.5,), step)


def dpm_3s(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver-3 in noise form: three ticks per step.

    Lu et al. 2022 (arXiv:2206.00927), algorithm 2 with r_1 = 1/3 and r_2 = 2/3.
    """

    def step(cur: GridPoint, s1: GridPoint, s2: GridPoint, nxt: GridPoint) -> list[Tick]:
        h = nxt.lam - cur.lam
        r1, r2 = (s1.lam - cur.lam) / h, (s2.lam - cur.lam) / h
        d1 = -s2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
        b1 = -s2.sigma * math.expm1(r2 * h) - d1
        second = Tick(
            s1.t,
            s1.timestep,
            *s1.noise,
            a=0.0,
            s=s2.alpha / cur.alpha,
            b=(d1, b1, 0.0, 0.0),
            e=1.0,
            push=True,
        )
        d2 = -nxt.sigma / r2 * (math.expm1(h) / h - 1)
        b2 = -nxt.sigma * math.expm1(h) - d2
        last = Tick(s2.t, s2.timestep, *s2.noise, a=0.0, s=nxt.alpha / cur.alpha, b=(d2, 0.0, b2, 0.0))
        return [_noise_tick(cur, s1), second, last]

    return _plan_steps(grid, (1 / 3, 2 / 3), step)


def dpmpp_2s(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver++(2S) in data form: two ticks per step.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 1 with r = 1/2.
    """

    def step(cur: GridPoint, s1: GridPoint, nxt: GridPoint) -> list[Tick]:
        h, r1 = nxt.lam - cur.lam, (s1.lam - cur.lam) / (nxt.lam - cur.lam)
        phi_1 = -nxt.alpha * math.expm1(-h)
        b0 = phi_1 / (2 * r1)
        last = Tick(s1.t, s1.timestep, *s1.data, a=0.0, s=nxt.sigma / cur.sigma, b=(b0, phi_1 - b0, 0.0, 0.0))
        return [replace(ddim_tick(cur, s1), d=1.0, push=True), last]

    return _plan_steps(grid, (0.5,), step)


def _plan_steps(
    grid: SolverGrid, fractions: tuple[float, ...], step: Callable[..., list[Tick]]
) -> list[Tick]:
    """The ticks of `step`(cur, *inner points, nxt) where h is finite, and of an Euler step elsewhere.

    The inner points are at `fractions` of the step's h.
    """
    ticks = []
    for i, (cur, nxt) in enumerate(grid.steps):
        if cur.is_noise or nxt.is_data:
            ticks.append(ddim_tick(cur, nxt))
        else:
            ticks += step(cur, *grid.inner_points(i, fractions), nxt)
    return ticks


def _noise_tick(cur: GridPoint, nxt: GridPoint) -> Tick:
    """DPM-Solver-1, which also saves x in y and pushes the noise."""
    b0 = -nxt.sigma * math.expm1(nxt.lam - cur.lam)
    return Tick(cur.t, cur.timestep, *cur.noise, nxt.alpha / cur.alpha, (b0, 0.0, 0.0, 0.0), d=1.0, push=True)
