"""Solvers without memory of earlier steps: Euler, DDIM, ancestral sampling, Euler-Maruyama, Heun."""

import math
from dataclasses import replace

from safelight.pipeline.diffusion.solvers.table import GridPoint, SolverGrid, Tick


def euler(grid: SolverGrid) -> list[Tick]:
    """Euler in sigma / alpha, which is DDIM with eta = 0 (Song et al. 2020, arXiv:2010.02502, eq. 12)."""
    return [ddim_tick(cur, nxt) for cur, nxt in grid.steps]


def ddim(grid: SolverGrid, eta: float) -> list[Tick]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12, 16): `eta` = 0 is deterministic, 1 is ancestral."""
    return [ddim_tick(cur, nxt, eta) for cur, nxt in grid.steps]


def ddpm(grid: SolverGrid) -> list[Tick]:
    """Ancestral sampling from the posterior q(x' | x, x0) (Ho et al. 2020, arXiv:2006.11239, eq. 7).

    It is DDIM at eta = 1, on any alpha, sigma and step. No noise at the last step.
    """
    return ddim(grid, 1.0)


def ddpm_fixed_large(grid: SolverGrid) -> list[Tick]:
    """Ancestral sampling with the forward variance (Ho et al. 2020, arXiv:2006.11239, section 3.2).

    The mean is the posterior's. The variance is beta where a step is a training step; on variance-preserving
    schedules it is the larger of the two bounds of the true variance. No noise at the last step.
    """
    ticks = []
    for cur, nxt in grid.steps:
        mean = ddim_tick(cur, nxt, 1.0)
        c = 0.0 if nxt.is_data else cur.sigma * math.sqrt(1.0 - signal_ratio(cur, nxt) ** 2)
        ticks.append(replace(mean, c=c))
    return ticks


def euler_maruyama(grid: SolverGrid) -> list[Tick]:
    """Euler-Maruyama in t on the reverse SDE (Song et al. 2021, arXiv:2011.13456, eq. 6): weak order 1.

    No noise at the last step. Not defined on flows, whose SDE is singular at t = 1.
    """
    ticks = []
    for cur, nxt in grid.steps:
        f, g2 = grid.schedule.rates(cur.t)
        dt = cur.t - nxt.t
        # x' = x - (f x - g^2 score) dt with score = (alpha x0 - x) / sigma^2
        a = 1.0 - f * dt - g2 * dt / cur.sigma**2
        c = 0.0 if nxt.is_data else math.sqrt(g2 * dt)
        ticks.append(
            Tick(cur.t, cur.timestep, *cur.data, a, (g2 * dt * cur.alpha / cur.sigma**2, 0.0, 0.0, 0.0), c=c)
        )
    return ticks


def heun(grid: SolverGrid) -> list[Tick]:
    """Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn): two ticks per step.

    In x / alpha over sigma / alpha, as in the paper; on flows in x over t, where the first step is finite. A
    step from pure noise where sigma / alpha is infinite, and a step to pure data, are Euler steps.
    """
    flow = grid.schedule.family == "flow"
    ticks = []
    for cur, nxt in grid.steps:
        predictor = ddim_tick(cur, nxt)
        if (cur.is_noise and not flow) or nxt.is_data:
            ticks.append(predictor)
            continue
        scale, scale_next = (cur.alpha + cur.sigma, nxt.alpha + nxt.sigma) if flow else (cur.alpha, nxt.alpha)
        tau, tau_next = cur.sigma / scale, nxt.sigma / scale_next
        h = tau_next - tau  # of y = x / scale over tau, dy / dtau = (y - x0) / tau
        ticks.append(Tick(cur.t, cur.timestep, *cur.data, predictor.a, predictor.b, d=1.0, push=True))
        ticks.append(
            Tick(
                nxt.t,
                nxt.timestep,
                *nxt.data,
                a=h / (2 * tau_next),
                s=scale_next / scale * (1 + h / (2 * tau)),
                b=(-scale_next * h / (2 * tau_next), -scale_next * h / (2 * tau), 0.0, 0.0),
            )
        )
    return ticks


def ddim_tick(cur: GridPoint, nxt: GridPoint, eta: float = 0.0) -> Tick:
    """The DDIM update from `cur` to `nxt`: predict x0 and step along the implied noise.

    The share `eta` of the posterior's standard deviation is fresh noise.
    """
    c = eta * nxt.sigma * math.sqrt(1.0 - signal_ratio(cur, nxt) ** 2)
    a = math.sqrt(nxt.sigma**2 - c**2) / cur.sigma
    return Tick(cur.t, cur.timestep, *cur.data, a, (nxt.alpha - cur.alpha * a, 0.0, 0.0, 0.0), c=c)


def signal_ratio(cur: GridPoint, nxt: GridPoint) -> float:
    """exp(lam - lam'), between 0 and 1: the ratio alpha / sigma at `cur` over that at `nxt`."""
    return cur.alpha * nxt.sigma / (nxt.alpha * cur.sigma)
