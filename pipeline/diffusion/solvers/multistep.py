"""Solvers that remember model values of earlier steps: one evaluation a step (`plms` takes one more at its start).

Data-form exponential integrators step x' = sigma'/sigma x - alpha' expm1(-h) (m + ...) with h = lam' - lam; a step from
pure noise or to pure data, where h is infinite, is of first order, and a value from before such a step is forgotten.
"""

import math

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import NONE, Four, GridPoint, SolverGrid, Tick
from safelight.pipeline.errors import InvalidParams

LOW_ORDER_BELOW = 15  # steps: the published solvers end at lower orders only when there are fewer
ADAMS_BASHFORTH: tuple[Four, ...] = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def dpmpp_2m(path: SolverGrid) -> list[Tick]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""
    return [_multistep_tick(now, then, past[:1], 1.0) for now, then, past in _with_past(path)]


def dpmpp_3m(path: SolverGrid) -> list[Tick]:
    """DPM-Solver++(3M) as its authors published it in code: its last term lacks a factor 2, so it is of order 2.

    At 10 to 20 evaluations the missing factor does no harm. With fewer than 15 steps the last but one is of second order.
    """
    return [_multistep_tick(now, then, past, 1.0) for now, then, past in _with_past(path)]


def dpmpp_3m_order3(path: SolverGrid) -> list[Tick]:
    """DPM-Solver++(3M) with the factor put right, which is UniP-3 (Zhao et al. 2023, arXiv:2302.04867): order 3."""
    return [_multistep_tick(now, then, past, 2.0) for now, then, past in _with_past(path)]


def sde_dpmpp_2m(path: SolverGrid) -> list[Tick]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5; the midpoint form). No noise at the last step."""
    ticks = []
    for now, then, past in _with_past(path):
        ratio = math.exp(-_h(now, then))
        gain = then.alpha * (1.0 - ratio**2)
        weight = _h(now, then) / (2 * _h(past[0], now)) if past else 0.0  # 1 / (2 r)
        ticks.append(
            Tick(
                now.t,
                now.timestep,
                *now.data,
                a=then.sigma / now.sigma * ratio,
                b=(gain * (1 + weight), -gain * weight, 0.0, 0.0),
                c=then.sigma * math.sqrt(1.0 - ratio**2),
                push=True,
            )
        )
    return ticks


def ipndm(path: SolverGrid) -> list[Tick]:
    """iPNDM (Zhang and Chen 2022, arXiv:2204.13902, section 3.3): Adams-Bashforth on the noise, order rising from 1 to 4.

    Its coefficients are those of equal steps, so on other grids, and after its start, the asymptotic order is 2.
    """
    ticks: list[Tick] = []
    known = 0
    for now, then in path.steps:
        if now.is_noise:
            ticks.append(ddim_tick(now, then))  # the noise of pure noise is itself: nothing to remember
            continue
        ticks.append(_transfer_tick(now, then, ADAMS_BASHFORTH[known], push=True))
        known = min(known + 1, 3)
    return ticks


def plms(path: SolverGrid) -> list[Tick]:
    """PNDM with linear multistep start (Liu et al. 2022, arXiv:2202.09778, as in Stable Diffusion): N + 1 evaluations.

    The first step is taken twice, the second time with the mean of the noise at both of its ends; a step from pure noise
    before it is Euler's. Raises `InvalidParams` if that leaves no step to start with.
    """
    start = path.start
    if len(path.steps) < start + 2:
        raise InvalidParams(
            "num_inference_steps",
            f"num_inference_steps must be at least {start + 2} for plms on this schedule, got {len(path.steps)}",
        )
    ticks = [ddim_tick(now, then) for now, then in path.steps[:start]]
    now, then = path.steps[start]
    first = _transfer_tick(now, then, ADAMS_BASHFORTH[0], push=True)
    ticks.append(Tick(first.t, first.timestep, first.p, first.q, first.a, first.b, d=1.0, push=True))
    again = _transfer(now, then)
    ticks.append(
        Tick(then.t, then.timestep, *then.noise, a=0.0, s=again[0], b=(again[1] / 2, again[1] / 2, 0.0, 0.0))
    )
    for known, (now, then) in enumerate(path.steps[start + 1 :], 1):
        ticks.append(_transfer_tick(now, then, ADAMS_BASHFORTH[min(known, 3)], push=True))
    return ticks


def _with_past(path: SolverGrid) -> list[tuple[GridPoint, GridPoint, list[GridPoint]]]:
    """Each step with the at most two points before it that its solver may look back at, newest first."""
    found = []
    num_steps = len(path.steps)
    for i, (now, then) in enumerate(path.steps):
        past = [] if then.is_data else path.usable_history(i, 2)
        if path.lower_order_final and num_steps < LOW_ORDER_BELOW:
            past = past[: num_steps - i - 1]
        found.append((now, then, past))
    return found


def _multistep_tick(now: GridPoint, then: GridPoint, past: list[GridPoint], doubled: float) -> Tick:
    """Orders 1 to 3 by how much of the past there is; `doubled` multiplies the term of the second difference."""
    base = ddim_tick(now, then)
    weights = NONE
    if past:
        h = _h(now, then)
        phi_1 = math.expm1(-h)
        phi_2 = phi_1 / h + 1.0
        phi_3 = phi_2 / h - 0.5
        r0 = _h(past[0], now) / h
        d1_0 = (1 / r0, -1 / r0, 0.0)  # differences as weights of m0, m1, m2
        if len(past) == 1:
            weights = _weights((-0.5 * phi_1, d1_0))
        else:
            r1 = _h(past[1], past[0]) / h
            d1_1 = (0.0, 1 / r1, -1 / r1)
            d1 = tuple(u + r0 / (r0 + r1) * (u - v) for u, v in zip(d1_0, d1_1, strict=True))
            d2 = tuple((u - v) / (r0 + r1) for u, v in zip(d1_0, d1_1, strict=True))
            weights = _weights((phi_2, d1), (-doubled * phi_3, d2))
    b = tuple(u + then.alpha * v for u, v in zip(base.b, weights, strict=True))
    return Tick(now.t, now.timestep, *now.data, base.a, (b[0], b[1], b[2], b[3]), push=True)


def _weights(*terms: tuple[float, tuple[float, ...]]) -> Four:
    total = [sum(scale * weights[j] for scale, weights in terms) for j in range(3)]
    return total[0], total[1], total[2], 0.0


def _transfer(now: GridPoint, then: GridPoint) -> tuple[float, float]:
    """(u, w) of DDIM's step in noise form, x' = u x + w eps."""
    return then.alpha / now.alpha, then.sigma - then.alpha * now.sigma / now.alpha


def _transfer_tick(now: GridPoint, then: GridPoint, combination: Four, push: bool) -> Tick:
    u, w = _transfer(now, then)
    b = tuple(w * weight for weight in combination)
    return Tick(now.t, now.timestep, *now.noise, u, (b[0], b[1], b[2], b[3]), push=push)


def _h(now: GridPoint, then: GridPoint) -> float:
    return then.lam - now.lam
