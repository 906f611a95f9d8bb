"""One-step methods, each in the form of its paper."""

import math

from torch import Tensor

from safelight.pipeline.diffusion.reference.problem import Problem


def ddim(problem: Problem, x: Tensor, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502), eq. 12 with sigma_t of eq. 16.

    alpha_bar is that of x scaled to preserve variance.
    """
    for k, (t, t_next) in enumerate(problem.steps):
        (alpha, sigma), (alpha_next, sigma_next) = problem.alpha_sigma(t), problem.alpha_sigma(t_next)
        x0 = problem.denoise(x, t)
        eps = (x - alpha * x0) / sigma
        deviation = 0.0
        if eta and sigma_next:
            alpha_bar = alpha**2 / (alpha**2 + sigma**2)
            alpha_bar_next = alpha_next**2 / (alpha_next**2 + sigma_next**2)
            # eq. 16 holds for x scaled to unit variance; `scale` scales back
            scale = math.hypot(alpha_next, sigma_next)
            share = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
            deviation = eta * scale * math.sqrt(share)
        x = alpha_next * x0 + math.sqrt(sigma_next**2 - deviation**2) * eps
        if deviation:
            x = x + deviation * problem.noise(k)
    return x


def ddpm(problem: Problem, x: Tensor) -> Tensor:
    """DDPM (Ho et al. 2020, arXiv:2006.11239), algorithm 2 with mean and variance of eq. 7, on any grid."""
    return _ancestral(problem, x, fixed_large=False)


def ddpm_fixed_large(problem: Problem, x: Tensor) -> Tensor:
    """DDPM (Ho et al. 2020, arXiv:2006.11239), algorithm 2 with sigma_t^2 = beta_t, on any grid."""
    return _ancestral(problem, x, fixed_large=True)


def _ancestral(problem: Problem, x: Tensor, fixed_large: bool) -> Tensor:
    for k, (t, t_next) in enumerate(problem.steps):
        x, beta, posterior = _posterior(problem, x, t, t_next)
        if t_next > 0.0:
            x = x + math.sqrt(beta if fixed_large else posterior) * problem.noise(k)
    return x


def _posterior(problem: Problem, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float, float]:
    """Mean of q(x' | x, x0) with the predicted x0, forward variance, and variance of q.

    The forward variance is beta_t on variance-preserving schedules.
    """
    (alpha, sigma), (alpha_next, sigma_next) = problem.alpha_sigma(t), problem.alpha_sigma(t_next)
    alpha_step = alpha / alpha_next
    beta = sigma**2 - alpha_step**2 * sigma_next**2
    mean = (alpha_step * sigma_next**2 * x + alpha_next * beta * problem.denoise(x, t)) / sigma**2
    return mean, beta, beta * sigma_next**2 / sigma**2


def euler_ancestral(problem: Problem, x: Tensor) -> Tensor:
    """Ancestral Euler as in k-diffusion, in Karras' notation.

    A step goes down to sigma_down, then adds sigma_up of fresh noise. Needs alpha > 0.
    """
    for k, (t, t_next) in enumerate(problem.steps):
        sigma, sigma_next = problem.sigma(t) / problem.alpha(t), problem.sigma(t_next) / problem.alpha(t_next)
        x_hat = x / problem.alpha(t)
        sigma_up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        d = (x_hat - problem.denoise(x, t)) / sigma
        x = problem.alpha(t_next) * (
            x_hat + d * (sigma_down - sigma) + (sigma_up * problem.noise(k) if sigma_up else 0.0)
        )
    return x


def euler_maruyama(problem: Problem, x: Tensor) -> Tensor:
    """Euler-Maruyama (Song et al. 2021, arXiv:2011.13456, eq. 6, discretised in t).

    Drift f x - g^2 score, noise g sqrt(dt) z except at the last step.
    """
    for k, (t, t_next) in enumerate(problem.steps):
        f, g2 = problem.schedule.rates(t)
        score = -problem.eps(x, t) / problem.sigma(t)
        x = x - (f * x - g2 * score) * (t - t_next)
        if problem.sigma(t_next) > 0.0:
            x = x + math.sqrt(g2 * (t - t_next)) * problem.noise(k)
    return x


def heun(problem: Problem, x: Tensor) -> Tensor:
    """Heun's method (Karras et al. 2022, arXiv:2206.00364), algorithm 1 without churn.

    In x / alpha and sigma / alpha; on flows in x and t.
    """
    for t, t_next in problem.steps:
        (alpha, sigma), (alpha_next, sigma_next) = problem.alpha_sigma(t), problem.alpha_sigma(t_next)
        x0 = problem.denoise(x, t)
        if problem.schedule.family == "flow":
            velocity = (x - x0) / t  # eps - x0
            x_next = x + (t_next - t) * velocity
            if t_next > 0.0:
                velocity_next = (x_next - problem.denoise(x_next, t_next)) / t_next
                x_next = x + (t_next - t) * 0.5 * (velocity + velocity_next)
            x = x_next
            continue
        if problem.is_noise(t) or sigma_next == 0.0:
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
            continue
        sigma_hat, sigma_hat_next = sigma / alpha, sigma_next / alpha_next
        x_hat = x / alpha
        d = (x_hat - x0) / sigma_hat
        x_hat_next = x_hat + (sigma_hat_next - sigma_hat) * d
        d_next = (x_hat_next - problem.denoise(alpha_next * x_hat_next, t_next)) / sigma_hat_next
        x = alpha_next * (x_hat + (sigma_hat_next - sigma_hat) * 0.5 * (d + d_next))
    return x
