"""Multistep solvers, which use model values of earlier steps.

They take one evaluation per step; `plms` takes one more at its start. Exponential integrators in data form
step x' = sigma'/sigma x - alpha' expm1(-h) (m + ...) with h = lam' - lam. A step from pure noise or to pure
data, where h is infinite, is of first order, and no value from before it is used after it.
"""

import math
from dataclasses import replace

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import ZERO_WEIGHTS, GridPoint, SolverGrid, Tick, Weights
from safelight.pipeline.errors import InvalidParams

LOW_ORDER_BELOW = 15  # the published solvers lower their order at the end only with fewer steps than this
ADAMS_BASHFORTH: tuple[Weights, ...] = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def dpmpp_2m(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""
    return [_multistep_tick(cur, nxt, past[:1], 1.0) for cur, nxt, past in _with_past(grid)]


def dpmpp_3m(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver++(3M) as in its authors' code: the last term lacks a factor 2, so the solver is of order 2.

    At 10 to 20 evaluations the missing factor does no harm. With fewer than 15 steps the last step but one is
    of second order.
    """
    return [_multistep_tick(cur, nxt, past, 1.0) for cur, nxt, past in _with_past(grid)]


def dpmpp_3m_order3(grid: SolverGrid) -> list[Tick]:
    """DPM-Solver++(3M) with the missing factor: UniP-3 (Zhao et al. 2023, arXiv:2302.04867), of order 3."""
    return [_multistep_tick(cur, nxt, past, 2.0) for cur, nxt, past in _with_past(grid)]


def sde_dpmpp_2m(grid: SolverGrid) -> list[Tick]:
    """SDE-DPM-Solver++(2M) in its midpoint form (Lu et al. 2022, arXiv:2211.01095, section 5).

    No noise at the last step.
    """
    ticks = []
    for cur, nxt, past in _with_past(grid):
        ratio = math.exp(-_h(cur, nxt))
        gain = nxt.alpha * (1.0 - ratio**2)
        weight = _h(cur, nxt) / (2 * _h(past[0], cur)) if past else 0.0  # 1 / (2 r)
        ticks.append(
            Tick(
                cur.t,
                cur.timestep,
                *cur.data,
                a=nxt.sigma / cur.sigma * ratio,
                b=(gain * (1 + weight), -gain * weight, 0.0, 0.0),
                c=nxt.sigma * math.sqrt(1.0 - ratio**2),
                push=True,
            )
        )
    return ticks


def ipndm(grid: SolverGrid) -> list[Tick]:
    """iPNDM (Zhang and Chen 2022, arXiv:2204.13902, section 3.3): Adams-Bashforth on the noise.

    The formulas rise from one value to four. Their coefficients are those of equal steps, so on other grids,
    and because of the start, the asymptotic order is 2.
    """
    ticks: list[Tick] = []
    num_past = 0
    for cur, nxt in grid.steps:
        if cur.is_noise:
            ticks.append(ddim_tick(cur, nxt))  # the predicted noise of pure noise is x itself: not kept
            continue
        ticks.append(_transfer_tick(cur, nxt, ADAMS_BASHFORTH[num_past]))
        num_past = min(num_past + 1, 3)
    return ticks


def plms(grid: SolverGrid) -> list[Tick]:
    """PNDM with a linear multistep start (Liu et al. 2022, arXiv:2202.09778, as in Stable Diffusion).

    N + 1 evaluations: the first step is taken twice, the second time with the mean of the noise at its two
    ends. Steps from pure noise are Euler steps. Raises `InvalidParams` if fewer than two steps follow them.
    """
    start = grid.num_noise_points
    if len(grid.steps) < start + 2:
        raise InvalidParams(
            "num_steps",
            f"num_steps must be at least {start + 2} for plms on this schedule, got {len(grid.steps)}",
        )
    ticks = [ddim_tick(cur, nxt) for cur, nxt in grid.steps[:start]]
    cur, nxt = grid.steps[start]
    ticks.append(replace(_transfer_tick(cur, nxt, ADAMS_BASHFORTH[0]), d=1.0))
    u, w = _transfer(cur, nxt)
    ticks.append(Tick(nxt.t, nxt.timestep, *nxt.noise, a=0.0, s=u, b=(w / 2, w / 2, 0.0, 0.0)))
    for num_past, (cur, nxt) in enumerate(grid.steps[start + 1 :], 1):
        ticks.append(_transfer_tick(cur, nxt, ADAMS_BASHFORTH[min(num_past, 3)]))
    return ticks


def _with_past(grid: SolverGrid) -> list[tuple[GridPoint, GridPoint, list[GridPoint]]]:
    """Every step with the points before it whose model values it may use, at most two, newest first."""
    steps = []
    num_steps = len(grid.steps)
    for i, (cur, nxt) in enumerate(grid.steps):
        past = [] if nxt.is_data else grid.usable_history(i, 2)
        if grid.lower_order_final and num_steps < LOW_ORDER_BELOW:
            past = past[: num_steps - i - 1]
        steps.append((cur, nxt, past))
    return steps


def _multistep_tick(cur: GridPoint, nxt: GridPoint, past: list[GridPoint], factor: float) -> Tick:
    """The tick of order 1 + len(`past`), 1 to 3; `factor` multiplies the term of the second difference."""
    base = ddim_tick(cur, nxt)
    weights = ZERO_WEIGHTS
    if past:
        h = _h(cur, nxt)
        phi_1 = math.expm1(-h)
        phi_2 = phi_1 / h + 1.0
        phi_3 = phi_2 / h - 0.5
        r0 = _h(past[0], cur) / h
        d1_0 = (1 / r0, -1 / r0, 0.0)  # differences as weights of m0, m1, m2
        if len(past) == 1:
            weights = _weighted_sum((-0.5 * phi_1, d1_0))
        else:
            r1 = _h(past[1], past[0]) / h
            d1_1 = (0.0, 1 / r1, -1 / r1)
            d1 = tuple(u + r0 / (r0 + r1) * (u - v) for u, v in zip(d1_0, d1_1, strict=True))
            d2 = tuple((u - v) / (r0 + r1) for u, v in zip(d1_0, d1_1, strict=True))
            weights = _weighted_sum((phi_2, d1), (-factor * phi_3, d2))
    b = tuple(u + nxt.alpha * v for u, v in zip(base.b, weights, strict=True))
    return Tick(cur.t, cur.timestep, *cur.data, base.a, (b[0], b[1], b[2], b[3]), push=True)


def _weighted_sum(*terms: tuple[float, tuple[float, ...]]) -> Weights:
    """The weights of m0..m3 in a sum of terms, each a scale and the weights of m0..m2."""
    total = [sum(scale * weights[j] for scale, weights in terms) for j in range(3)]
    return total[0], total[1], total[2], 0.0


def _transfer(cur: GridPoint, nxt: GridPoint) -> tuple[float, float]:
    """(u, w) of DDIM's step in noise form, x' = u x + w eps."""
    return nxt.alpha / cur.alpha, nxt.sigma - nxt.alpha * cur.sigma / cur.alpha


def _transfer_tick(cur: GridPoint, nxt: GridPoint, combination: Weights) -> Tick:
    """DDIM's step in noise form, with the `combination` of m0..m3 as eps; pushes the noise."""
    u, w = _transfer(cur, nxt)
    b = tuple(w * weight for weight in combination)
    return Tick(cur.t, cur.timestep, *cur.noise, u, (b[0], b[1], b[2], b[3]), push=True)


def _h(cur: GridPoint, nxt: GridPoint) -> float:
    return nxt.lam - cur.lam
