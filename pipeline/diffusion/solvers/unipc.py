"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a predictor, and a corrector without evaluations of its own.

The model value at a predicted point first corrects that point, then helps to predict the next. A sample's
saved state y is the latest corrected state; the ring holds the data predicted at earlier points. B(h) =
expm1(-h), the paper's B_2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import ZERO_WEIGHTS, GridPoint, SolverGrid, Tick, Weights


@dataclass(frozen=True, slots=True)
class LinearCombination:
    """A state as `state` times a saved state plus `models` times model values m0..m3, newest first."""

    state: float
    models: Weights


def unipc(order: int) -> Callable[[SolverGrid], list[Tick]]:
    """The planner of UniPC-p with p = `order`; with the corrector its order of convergence is p + 1.

    With `lower_order_final` the last steps have orders ..., 2, 1, as in the authors' code.
    """

    def planner(grid: SolverGrid) -> list[Tick]:
        """One tick per step, which holds the corrector of its point and the predictor of the next."""
        ticks: list[Tick] = []
        correction = LinearCombination(1.0, ZERO_WEIGHTS)
        for i, (cur, nxt) in enumerate(grid.steps):
            prediction = _predict(cur, nxt, _past(grid, i, order))
            # x' = state x_c + models m with x_c = correction of y
            b = _sum(_scaled(prediction.state, correction.models), prediction.models)
            if i == 0:
                tick = Tick(cur.t, cur.timestep, *cur.data, prediction.state, b, d=1.0, push=True)
            else:
                s, e, f = prediction.state * correction.state, correction.state, correction.models
                tick = Tick(cur.t, cur.timestep, *cur.data, 0.0, b, s=s, e=e, f=f, push=True)
            ticks.append(tick)
            correction = _correct(cur, nxt, _past(grid, i, order))
        return ticks

    return planner


def _past(grid: SolverGrid, step: int, order: int) -> list[GridPoint]:
    """The points before step `step` whose model values it uses, newest first: at most `order` - 1.

    There are no such points if the step's h is infinite; points where lam is infinite are left out.
    """
    cur, nxt = grid.steps[step]
    if cur.alpha == 0.0 or nxt.is_data:
        return []
    max_order = min(order, len(grid.steps) - step) if grid.lower_order_final else order
    return grid.usable_history(step, max_order - 1)


def _predict(cur: GridPoint, nxt: GridPoint, past: list[GridPoint]) -> LinearCombination:
    """UniP (algorithm 6 in the data form): x at `nxt`, with weights of m0 (at `cur`), m1, m2."""
    base = ddim_tick(cur, nxt)
    if not past:
        return LinearCombination(base.a, base.b)
    h = nxt.lam - cur.lam
    r = [(point.lam - cur.lam) / h for point in past]
    rho = [0.5] if len(past) == 1 else _solve(r, _moments(h, len(r)))
    scale = -nxt.alpha * math.expm1(-h)
    weights = [base.b[0], 0.0, 0.0, 0.0]
    for j, (r_j, rho_j) in enumerate(zip(r, rho, strict=True), 1):
        weights[j] += scale * rho_j / r_j
        weights[0] -= scale * rho_j / r_j
    return LinearCombination(base.a, (weights[0], weights[1], weights[2], weights[3]))


def _correct(cur: GridPoint, nxt: GridPoint, past: list[GridPoint]) -> LinearCombination:
    """UniC (algorithm 5 in the data form): x at `nxt`, with weights of m0 (at `nxt`), m1 (at `cur`), m2, m3.

    After a step from pure noise, where h is infinite, the predicted point is kept: it equals Euler's from the
    saved state.
    """
    base = ddim_tick(cur, nxt)
    if cur.alpha == 0.0 or nxt.is_data:
        return LinearCombination(base.a, (0.0, base.b[0], 0.0, 0.0))
    h = nxt.lam - cur.lam
    r = [*((point.lam - cur.lam) / h for point in past), 1.0]
    rho = [0.5] if not past else _solve(r, _moments(h, len(r)))
    scale = -nxt.alpha * math.expm1(-h)
    weights = [0.0, base.b[0], 0.0, 0.0]
    indices = [*range(2, 2 + len(past)), 0]  # of the model value that belongs to each r; the newest is m0
    for j, r_j, rho_j in zip(indices, r, rho, strict=True):
        weights[j] += scale * rho_j / r_j
        weights[1] -= scale * rho_j / r_j
    return LinearCombination(base.a, (weights[0], weights[1], weights[2], weights[3]))


def _moments(h: float, count: int) -> list[float]:
    """b_1, b_2, ... of the paper's eq. 7 over B(h), for steps of -h in the data form."""
    b, factorial, phi = [], 1.0, math.expm1(-h) / -h - 1.0
    for i in range(1, count + 1):
        b.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1.0 / factorial
    return b


def _solve(r: list[float], b: list[float]) -> list[float]:
    """rho with sum_j r_j^(i-1) rho_j = b_i: a Vandermonde system of at most three rows, by elimination."""
    rows = [[*(r_j**i for r_j in r), b_i] for i, b_i in enumerate(b)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [u - rows[k][i] * v for u, v in zip(rows[k], rows[i], strict=True)]
    return [row[size] for row in rows]


def _scaled(factor: float, weights: Weights) -> Weights:
    return factor * weights[0], factor * weights[1], factor * weights[2], factor * weights[3]


def _sum(u: Weights, v: Weights) -> Weights:
    return u[0] + v[0], u[1] + v[1], u[2] + v[2], u[3] + v[3]
