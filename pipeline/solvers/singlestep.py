"""Single-step solvers: several evaluations inside each step, nothing remembered from one step to the next.

Exponential Runge-Kutta in lam with h = lam' - lam. A step from pure noise or to pure data, where h is infinite, is an
Euler step of one evaluation.
"""

import math

from pipeline.solvers.onestep import ddim_tick
from pipeline.solvers.table import Path, Point, Tick


def dpm_2s(path: Path) -> list[Tick]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1 with r_1 = 1/2), on the noise: two ticks a step."""
    ticks = []
    for i, (now, then) in enumerate(path.steps):
        if now.is_noise or then.is_data:
            ticks.append(ddim_tick(now, then))
            continue
        (s1,) = path.between(i, (0.5,))
        h, r1 = then.lam - now.lam, (s1.lam - now.lam) / (then.lam - now.lam)
        ticks.append(_noise_tick(now, s1))
        phi_1 = then.sigma * math.expm1(h)
        b0 = -phi_1 / (2 * r1)
        ticks.append(Tick(s1.t, s1.timestep, *s1.noise, a=0.0, s=then.alpha / now.alpha, b=(b0, -phi_1 - b0, 0.0, 0.0)))
    return ticks


def dpm_3s(path: Path) -> list[Tick]:
    """DPM-Solver-3 (Lu et al. 2022, arXiv:2206.00927, algorithm 2, r_1 = 1/3 and r_2 = 2/3), on the noise: three ticks a step."""
    ticks = []
    for i, (now, then) in enumerate(path.steps):
        if now.is_noise or then.is_data:
            ticks.append(ddim_tick(now, then))
            continue
        s1, s2 = path.between(i, (1 / 3, 2 / 3))
        h = then.lam - now.lam
        r1, r2 = (s1.lam - now.lam) / h, (s2.lam - now.lam) / h
        ticks.append(_noise_tick(now, s1))
        d1 = -s2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
        b1 = -s2.sigma * math.expm1(r2 * h) - d1
        ticks.append(Tick(s1.t, s1.timestep, *s1.noise, a=0.0, s=s2.alpha / now.alpha, b=(d1, b1, 0.0, 0.0), e=1.0, push=True))
        d2 = -then.sigma / r2 * (math.expm1(h) / h - 1)
        b2 = -then.sigma * math.expm1(h) - d2
        ticks.append(Tick(s2.t, s2.timestep, *s2.noise, a=0.0, s=then.alpha / now.alpha, b=(d2, 0.0, b2, 0.0)))
    return ticks


def dpmpp_2s(path: Path) -> list[Tick]:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2), on the data: two ticks a step."""
    ticks = []
    for i, (now, then) in enumerate(path.steps):
        if now.is_noise or then.is_data:
            ticks.append(ddim_tick(now, then))
            continue
        (s1,) = path.between(i, (0.5,))
        h, r1 = then.lam - now.lam, (s1.lam - now.lam) / (then.lam - now.lam)
        first = ddim_tick(now, s1)
        ticks.append(Tick(first.t, first.timestep, first.p, first.q, first.a, first.b, d=1.0, push=True))
        phi_1 = -then.alpha * math.expm1(-h)
        b0 = phi_1 / (2 * r1)
        ticks.append(Tick(s1.t, s1.timestep, *s1.data, a=0.0, s=then.sigma / now.sigma, b=(b0, phi_1 - b0, 0.0, 0.0)))
    return ticks


def _noise_tick(now: Point, then: Point) -> Tick:
    """DPM-Solver-1, remembering where it started."""
    b0 = -then.sigma * math.expm1(then.lam - now.lam)
    return Tick(now.t, now.timestep, *now.noise, then.alpha / now.alpha, (b0, 0.0, 0.0, 0.0), d=1.0, push=True)
