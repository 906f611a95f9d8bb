"""Solvers that look at one step at a time: Euler and DDIM, ancestral sampling, Euler-Maruyama, Heun."""

import math

from safelight.pipeline.diffusion.solvers.table import GridPoint, SolverGrid, Tick


def euler(path: SolverGrid) -> list[Tick]:
    """Euler in sigma / alpha, which is DDIM with eta = 0 (Song et al. 2020, arXiv:2010.02502, eq. 12)."""
    return [ddim_tick(now, then) for now, then in path.steps]


def ddim(path: SolverGrid, eta: float) -> list[Tick]:
    """Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16: `eta` = 0 is the deterministic method, 1 is ancestral."""
    return [ddim_tick(now, then, eta) for now, then in path.steps]


def ddpm(path: SolverGrid) -> list[Tick]:
    """Ancestral sampling from the posterior q(x' | x, x0) (Ho et al. 2020, arXiv:2006.11239, eq. 7).

    DDIM at eta = 1; on any alpha, sigma and stride. No noise at the last step.
    """
    return ddim(path, 1.0)


def ddpm_fixed_large(path: SolverGrid) -> list[Tick]:
    """Ancestral sampling with the forward variance, beta where the step is a training step (Ho et al. 2020, section 3.2).

    The posterior's mean and, where the path preserves variance, the larger of the two bounds of the true one. No noise at the last step.
    """
    ticks = []
    for now, then in path.steps:
        mean = ddim_tick(now, then, 1.0)
        c = 0.0 if then.is_data else now.sigma * math.sqrt(1.0 - signal_ratio(now, then) ** 2)
        ticks.append(Tick(mean.t, mean.timestep, mean.p, mean.q, mean.a, mean.b, c=c))
    return ticks


def euler_maruyama(path: SolverGrid) -> list[Tick]:
    """The reverse SDE of Song et al. 2021 (arXiv:2011.13456), eq. 6, by Euler and Maruyama in t: weak order 1.

    No noise at the last step. Not defined on flows, whose SDE is not finite at t = 1.
    """
    ticks = []
    for now, then in path.steps:
        f, g2 = path.schedule.rates(now.t)
        dt = now.t - then.t
        a = (
            1.0 - f * dt - g2 * dt / now.sigma**2
        )  # x' = x - (f x - g^2 score) dt, score = (alpha x0 - x) / sigma^2
        c = 0.0 if then.is_data else math.sqrt(g2 * dt)
        ticks.append(
            Tick(now.t, now.timestep, *now.data, a, (g2 * dt * now.alpha / now.sigma**2, 0.0, 0.0, 0.0), c=c)
        )
    return ticks


def heun(path: SolverGrid) -> list[Tick]:
    """Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithm 1, no churn) where paths are straight: two ticks a step.

    In x / alpha over sigma / alpha, as in the paper; on flows in x over t, where the first step is finite. A step from pure
    noise where sigma / alpha is infinite, and one to pure data, is an Euler step.
    """
    flow = path.schedule.family == "flow"
    ticks = []
    for now, then in path.steps:
        predictor = ddim_tick(now, then)
        if (now.is_noise and not flow) or then.is_data:
            ticks.append(predictor)
            continue
        scale, scale_next = (
            (now.alpha + now.sigma, then.alpha + then.sigma) if flow else (now.alpha, then.alpha)
        )
        tau, tau_next = now.sigma / scale, then.sigma / scale_next
        h = tau_next - tau  # of y = x / scale over tau, dy / dtau = (y - x0) / tau
        ticks.append(Tick(now.t, now.timestep, *now.data, predictor.a, predictor.b, d=1.0, push=True))
        ticks.append(
            Tick(
                then.t,
                then.timestep,
                *then.data,
                a=h / (2 * tau_next),
                s=scale_next / scale * (1 + h / (2 * tau)),
                b=(-scale_next * h / (2 * tau_next), -scale_next * h / (2 * tau), 0.0, 0.0),
            )
        )
    return ticks


def ddim_tick(now: GridPoint, then: GridPoint, eta: float = 0.0) -> Tick:
    """Predict x0, point back along the implied noise, put `eta` of what the posterior would add in its place."""
    c = eta * then.sigma * math.sqrt(1.0 - signal_ratio(now, then) ** 2)
    a = math.sqrt(then.sigma**2 - c**2) / now.sigma
    return Tick(now.t, now.timestep, *now.data, a, (then.alpha - now.alpha * a, 0.0, 0.0, 0.0), c=c)


def signal_ratio(now: GridPoint, then: GridPoint) -> float:
    """exp(lam - lam'), between 0 and 1: how much less signal to noise there is now than then."""
    return now.alpha * then.sigma / (then.alpha * now.sigma)
