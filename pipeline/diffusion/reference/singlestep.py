"""Single-step exponential Runge-Kutta methods and Langevin dynamics, each in the form of its paper."""

import math

from torch import Tensor

from safelight.pipeline.diffusion.reference.onestep import ddim
from safelight.pipeline.diffusion.reference.problem import Problem


def dpm_2s(problem: Problem, x: Tensor) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927), algorithm 1 with r_1 = 1/2."""
    for t, t_next in problem.steps:
        if _is_infinite(problem, t, t_next):
            x = _euler(problem, t, t_next, x)
            continue
        h = problem.lam(t_next) - problem.lam(t)
        s = problem.schedule.time_of(problem.lam(t) + 0.5 * h)
        eps = problem.eps(x, t)
        u = problem.alpha(s) / problem.alpha(t) * x - problem.sigma(s) * math.expm1(0.5 * h) * eps
        eps = problem.eps(u, s)
        x = problem.alpha(t_next) / problem.alpha(t) * x - problem.sigma(t_next) * math.expm1(h) * eps
    return x


def dpm_3s(problem: Problem, x: Tensor) -> Tensor:
    """DPM-Solver-3 (Lu et al. 2022, arXiv:2206.00927), algorithm 2 with r_1 = 1/3 and r_2 = 2/3."""
    r1, r2 = 1 / 3, 2 / 3
    for t, t_next in problem.steps:
        if _is_infinite(problem, t, t_next):
            x = _euler(problem, t, t_next, x)
            continue
        h = problem.lam(t_next) - problem.lam(t)
        s1, s2 = (problem.schedule.time_of(problem.lam(t) + r * h) for r in (r1, r2))
        eps = problem.eps(x, t)
        u1 = problem.alpha(s1) / problem.alpha(t) * x - problem.sigma(s1) * math.expm1(r1 * h) * eps
        d1 = problem.eps(u1, s1) - eps
        u2 = (
            problem.alpha(s2) / problem.alpha(t) * x
            - problem.sigma(s2) * math.expm1(r2 * h) * eps
            - problem.sigma(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
        )
        d2 = problem.eps(u2, s2) - eps
        x = (
            problem.alpha(t_next) / problem.alpha(t) * x
            - problem.sigma(t_next) * math.expm1(h) * eps
            - problem.sigma(t_next) / r2 * (math.expm1(h) / h - 1) * d2
        )
    return x


def dpmpp_2s(problem: Problem, x: Tensor) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095), algorithm 1 with r = 1/2."""
    for t, t_next in problem.steps:
        if _is_infinite(problem, t, t_next):
            x = _euler(problem, t, t_next, x)
            continue
        h = problem.lam(t_next) - problem.lam(t)
        s = problem.schedule.time_of(problem.lam(t) + 0.5 * h)
        x0 = problem.denoise(x, t)
        u = problem.sigma(s) / problem.sigma(t) * x - problem.alpha(s) * math.expm1(-0.5 * h) * x0
        x0 = problem.denoise(u, s)
        x = problem.sigma(t_next) / problem.sigma(t) * x - problem.alpha(t_next) * math.expm1(-h) * x0
    return x


def langevin(problem: Problem, x: Tensor, inner_steps: int = 100, step_size: float = 0.1) -> Tensor:
    """Annealed Langevin dynamics (Song and Ermon 2019, arXiv:1907.05600), algorithm 1.

    The last step, which denoises, is that of Jolicoeur-Martineau et al. 2021 (arXiv:2009.05475).
    """
    k = 0
    for t, _ in problem.steps:
        step = step_size * problem.sigma(t) ** 2  # alpha_i of the paper
        for _ in range(inner_steps):
            score = -problem.eps(x, t) / problem.sigma(t)
            x = x + step / 2 * score + math.sqrt(step) * problem.noise(k)
            k += 1
    return _euler(problem, problem.grid[-2], problem.grid[-1], x)


def _is_infinite(problem: Problem, t: float, t_next: float) -> bool:
    """Whether the step's h is (almost) infinite."""
    return problem.is_noise(t) or problem.sigma(t_next) == 0.0


def _euler(problem: Problem, t: float, t_next: float, x: Tensor) -> Tensor:
    return ddim(Problem(problem.denoise, problem.schedule, (t, t_next), problem.noise), x)
