"""Multistep methods, each in the form of its paper, with the history in lists."""

import math

import torch
from torch import Tensor

from safelight.pipeline.diffusion.reference.problem import Problem

FEW_STEPS = 15


def _orders(problem: Problem, highest: int, final_below: int) -> list[int]:
    """The order of every step: as high as the history allows, up to `highest`.

    With fewer than `final_below` steps it is lowered at the end. Values from where lam is infinite do not
    count as history.
    """
    orders, history = [], 0
    for i, (t, t_next) in enumerate(problem.steps):
        finite = problem.alpha(t) > 0.0 and problem.sigma(t_next) > 0.0
        history = 0 if problem.alpha(t) == 0.0 else history + 1
        order = min(highest, max(history, 1)) if finite else 1
        if problem.lower_order_final and problem.num_steps < final_below:
            order = min(order, problem.num_steps - i)
        orders.append(order)
    return orders


def dpmpp(problem: Problem, x: Tensor, order: int, published: bool = True) -> Tensor:
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): algorithm 2, and the third order of the authors' code.

    As `published`, the last term lacks a factor 2 and the solver is of second order; otherwise it is of
    third order.
    """
    past: list[tuple[float, Tensor]] = []  # (lam, x0), newest first
    for (t, t_next), p in zip(problem.steps, _orders(problem, order, FEW_STEPS), strict=True):
        alpha_next, sigma, sigma_next = problem.alpha(t_next), problem.sigma(t), problem.sigma(t_next)
        h = problem.lam(t_next) - problem.lam(t)
        m0 = problem.denoise(x, t)
        x_next = sigma_next / sigma * x - alpha_next * math.expm1(-h) * m0
        if p == 2:
            r = (problem.lam(t) - past[0][0]) / h
            x_next = sigma_next / sigma * x - alpha_next * math.expm1(-h) * (
                (1 + 1 / (2 * r)) * m0 - 1 / (2 * r) * past[0][1]
            )
        elif p == 3:
            (lam1, m1), (lam2, m2) = past[:2]
            r0, r1 = (problem.lam(t) - lam1) / h, (lam1 - lam2) / h
            d1_0, d1_1 = (m0 - m1) / r0, (m1 - m2) / r1
            d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
            d2 = (1.0 if published else 2.0) * (d1_0 - d1_1) / (r0 + r1)
            x_next = (
                x_next
                + alpha_next * (math.expm1(-h) / h + 1.0) * d1
                - alpha_next * ((math.exp(-h) - 1.0 + h) / h**2 - 0.5) * d2
            )
        past = [(problem.lam(t), m0), *past]
        x = x_next
    return x


def sde_dpmpp_2m(problem: Problem, x: Tensor) -> Tensor:
    """Lu et al. 2022 (arXiv:2211.01095), SDE-DPM-Solver++(2M), the midpoint form."""
    past: list[tuple[float, Tensor]] = []
    for k, ((t, t_next), p) in enumerate(zip(problem.steps, _orders(problem, 2, FEW_STEPS), strict=True)):
        alpha_next, sigma, sigma_next = problem.alpha(t_next), problem.sigma(t), problem.sigma(t_next)
        h = problem.lam(t_next) - problem.lam(t)
        x0 = problem.denoise(x, t)
        d = x0
        if p == 2:
            r = (problem.lam(t) - past[0][0]) / h
            d = x0 + 0.5 * (x0 - past[0][1]) / r
        x = sigma_next / sigma * math.exp(-h) * x + alpha_next * (1.0 - math.exp(-2.0 * h)) * d
        if sigma_next > 0.0:
            x = x + sigma_next * math.sqrt(1.0 - math.exp(-2.0 * h)) * problem.noise(k)
        past = [(problem.lam(t), x0)]
    return x


def ipndm(problem: Problem, x: Tensor) -> Tensor:
    """iPNDM (Zhang and Chen 2022, arXiv:2204.13902): Adams-Bashforth on the noise, then DDIM's transfer."""
    ets: list[Tensor] = []
    for t, t_next in problem.steps:
        x0 = problem.denoise(x, t)
        if problem.is_noise(t):
            x = _euler(problem, t, t_next, x, x0)
            continue
        ets = [(x - problem.alpha(t) * x0) / problem.sigma(t), *ets][:4]
        x = _transfer(problem, t, t_next, x, _adams_bashforth(ets))
    return x


def plms(problem: Problem, x: Tensor) -> Tensor:
    """PLMS (Liu et al. 2022, arXiv:2202.09778) with Stable Diffusion's start.

    The first step is taken twice, the second time with the mean of the noise at its two ends.
    """
    ets: list[Tensor] = []
    for t, t_next in problem.steps:
        if problem.is_noise(t):
            x = _euler(problem, t, t_next, x, problem.denoise(x, t))
            continue
        ets = [problem.eps(x, t), *ets][:4]
        if len(ets) == 1:
            x_next = _transfer(problem, t, t_next, x, ets[0])
            x = _transfer(problem, t, t_next, x, (ets[0] + problem.eps(x_next, t_next)) / 2)
        else:
            x = _transfer(problem, t, t_next, x, _adams_bashforth(ets))
    return x


def _euler(problem: Problem, t: float, t_next: float, x: Tensor, x0: Tensor) -> Tensor:
    """Euler's step, in the form that also holds at alpha = 0."""
    return problem.alpha(t_next) * x0 + problem.sigma(t_next) * (x - problem.alpha(t) * x0) / problem.sigma(t)


def _adams_bashforth(ets: list[Tensor]) -> Tensor:
    """The Adams-Bashforth combination of one to four noise predictions, newest first, at equal steps."""
    if len(ets) == 1:
        return ets[0]
    if len(ets) == 2:
        return (3 * ets[0] - ets[1]) / 2
    if len(ets) == 3:
        return (23 * ets[0] - 16 * ets[1] + 5 * ets[2]) / 12
    return (55 * ets[0] - 59 * ets[1] + 37 * ets[2] - 9 * ets[3]) / 24


def _transfer(problem: Problem, t: float, t_next: float, x: Tensor, eps: Tensor) -> Tensor:
    """Liu et al. 2022, eq. 11: to the data that `eps` implies, and back to t_next."""
    x0 = (x - problem.sigma(t) * eps) / problem.alpha(t)
    return problem.alpha(t_next) * x0 + problem.sigma(t_next) * eps


def unipc(problem: Problem, x: Tensor, order: int) -> Tensor:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867), algorithms 7 and 8 in the data form with B_2.

    The corrected state reuses the model value of the predicted one. Orders are lowered at the end of any run.
    """
    orders = _orders(problem, order, final_below=problem.num_steps + 1)
    past: list[tuple[float, Tensor]] = []
    corrected = x
    for i, (t, t_next) in enumerate(problem.steps):
        m = problem.denoise(x, t)
        if i > 0 and problem.alpha(problem.grid[i - 1]) > 0.0:
            corrected = _unipc_step(problem, problem.grid[i - 1], t, corrected, past[: orders[i - 1]], m)
        else:
            corrected = x
        past = [(problem.lam(t), m), *past]
        x = _unipc_step(problem, t, t_next, corrected, past[: orders[i]], None)
    return x


def _unipc_step(
    problem: Problem, s: float, t: float, x: Tensor, past: list[tuple[float, Tensor]], m_t: Tensor | None
) -> Tensor:
    """x at t, from x at s and `past`, each (lam, model value), newest first, the first at s.

    It is the corrector with the model value `m_t` at t, the predictor without.
    """
    h = problem.lam(t) - problem.lam(s)
    m0 = past[0][1]
    x = problem.sigma(t) / problem.sigma(s) * x - problem.alpha(t) * math.expm1(-h) * m0
    values = [((lam - problem.lam(s)) / h, m) for lam, m in past[1:]]
    if m_t is not None:
        values.append((1.0, m_t))
    if not values:
        return x
    r = torch.tensor([r for r, _ in values], dtype=torch.float64)
    p = len(values)
    # phi_k(-h): phi_1 = (e^-h - 1) / -h, phi_{k+1} = (phi_k - 1 / k!) / -h; b_k = -h k! phi_{k+1} / B(h)
    phi, b = math.expm1(-h) / -h, []
    for k in range(1, p + 1):
        phi = (phi - 1.0 / math.factorial(k)) / -h
        b.append(-h * math.factorial(k) * phi / math.expm1(-h))
    if p == 1:
        # the paper's choice for one point, in predictor and corrector
        rho = torch.tensor([0.5], dtype=torch.float64)
    else:
        rho = torch.linalg.solve(torch.stack([r**k for k in range(p)]), torch.tensor(b, dtype=torch.float64))
    for (r_k, m), rho_k in zip(values, rho.tolist(), strict=True):
        x = x - problem.alpha(t) * math.expm1(-h) * rho_k * (m - m0) / r_k
    return x
