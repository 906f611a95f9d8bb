"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a predictor and a corrector that asks for no evaluation of its own.

The model value at a predicted point first corrects that point, then helps to predict the next. A sample's saved state y is
the last corrected state; the ring holds the data predicted at earlier points. B(h) = expm1(-h), the paper's B_2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import NONE, Four, GridPoint, SolverGrid, Tick


@dataclass(frozen=True, slots=True)
class LinearCombination:
    """A state as a combination: `state` times a saved state plus `models` times model values, newest first."""

    state: float
    models: Four


def unipc(order: int) -> Callable[[SolverGrid], list[Tick]]:
    """UniPC-p in the paper's naming: with the corrector its order of convergence is `order` + 1.

    With `lower_order_final` the last steps have orders ..., 2, 1, as in the authors' code.
    """

    def planner(path: SolverGrid) -> list[Tick]:
        """Predictor and corrector in one tick."""
        ticks: list[Tick] = []
        correction = LinearCombination(1.0, NONE)
        for i, (now, then) in enumerate(path.steps):
            prediction = _predict(now, then, _past(path, i, order))
            # x' = state x_c + models m with x_c = correction of y
            b = _sum(_scaled(prediction.state, correction.models), prediction.models)
            if i == 0:
                ticks.append(Tick(now.t, now.timestep, *now.data, prediction.state, b, d=1.0, push=True))
            else:
                s = prediction.state * correction.state
                ticks.append(
                    Tick(
                        now.t,
                        now.timestep,
                        *now.data,
                        0.0,
                        b,
                        s=s,
                        e=correction.state,
                        f=correction.models,
                        push=True,
                    )
                )
            correction = _correct(now, then, _past(path, i, order))
        return ticks

    return planner


def _past(path: SolverGrid, step: int, order: int) -> list[GridPoint]:
    """The points before step `step` that it looks back at, newest first: at most `order` - 1, none across infinite lam."""
    now, then = path.steps[step]
    if now.alpha == 0.0 or then.is_data:
        return []
    allowed = min(order, len(path.steps) - step) if path.lower_order_final else order
    return path.usable_history(step, allowed - 1)


def _predict(now: GridPoint, then: GridPoint, past: list[GridPoint]) -> LinearCombination:
    """UniP (algorithm 6 in the data form): weights of m0 (at `now`), m1, m2."""
    base = ddim_tick(now, then)
    if not past:
        return LinearCombination(base.a, base.b)
    h = then.lam - now.lam
    r = [(point.lam - now.lam) / h for point in past]
    rho = [0.5] if len(past) == 1 else _solve(r, _moments(h, len(r)))
    scale = -then.alpha * math.expm1(-h)
    weights = [base.b[0], 0.0, 0.0, 0.0]
    for j, (r_j, rho_j) in enumerate(zip(r, rho, strict=True), 1):
        weights[j] += scale * rho_j / r_j
        weights[0] -= scale * rho_j / r_j
    return LinearCombination(base.a, (weights[0], weights[1], weights[2], weights[3]))


def _correct(now: GridPoint, then: GridPoint, past: list[GridPoint]) -> LinearCombination:
    """UniC (algorithm 5 in the data form), asked at `then`: weights of m0 (at `then`), m1 (at `now`), m2, m3.

    After a step from pure noise, where h is infinite, the predicted point stands: it equals Euler's from the saved state.
    """
    base = ddim_tick(now, then)
    if now.alpha == 0.0 or then.is_data:
        return LinearCombination(base.a, (0.0, base.b[0], 0.0, 0.0))
    h = then.lam - now.lam
    r = [*((point.lam - now.lam) / h for point in past), 1.0]
    rho = [0.5] if not past else _solve(r, _moments(h, len(r)))
    scale = -then.alpha * math.expm1(-h)
    weights = [0.0, base.b[0], 0.0, 0.0]
    places = [*range(2, 2 + len(past)), 0]  # where m of each r stands; the newest is m0
    for place, r_j, rho_j in zip(places, r, rho, strict=True):
        weights[place] += scale * rho_j / r_j
        weights[1] -= scale * rho_j / r_j
    return LinearCombination(base.a, (weights[0], weights[1], weights[2], weights[3]))


def _moments(h: float, count: int) -> list[float]:
    """b_1.. of the paper's eq. 7 over B(h), for steps of -h in the data form."""
    b, factorial, phi = [], 1.0, math.expm1(-h) / -h - 1.0
    for i in range(1, count + 1):
        b.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1.0 / factorial
    return b


def _solve(r: list[float], b: list[float]) -> list[float]:
    """rho of sum_j r_j^(i-1) rho_j = b_i: a Vandermonde system of at most three rows, by elimination."""
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


def _scaled(factor: float, weights: Four) -> Four:
    return factor * weights[0], factor * weights[1], factor * weights[2], factor * weights[3]


def _sum(u: Four, v: Four) -> Four:
    return u[0] + v[0], u[1] + v[1], u[2] + v[2], u[3] + v[3]
