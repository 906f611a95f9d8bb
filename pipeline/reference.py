"""One sample in a plain loop, each update written from its paper, in float64: the specification and the oracle.

It shares the schedules with the engine and nothing else: it never sees a table, a batch or a cached text.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.schedules import Schedule, lam

Denoise = Callable[[Tensor, float], Tensor]  # (x, t) to x0, both (C, H, W) float64
Noise = Callable[[int], Tensor]  # evaluation number to z (C, H, W)
Network = Callable[[Tensor, float], Tensor]  # (x, timestep) to the raw prediction

Update = Callable[[Denoise, Schedule, tuple[float, ...], Tensor, Noise], Tensor]


def generate_one(
    cond: Network,
    uncond: Network,
    guidance_scale: float,
    prediction: str,
    schedule: Schedule,
    solver: str,
    num_steps: int,
    x: Tensor,
    noise: Noise,
) -> Tensor:
    """From the start x (C, H, W) to data. `cond` and `uncond` are the network with the prompt and the negative prompt."""

    def denoise(x: Tensor, t: float) -> Tensor:
        timestep = schedule.timestep(t)
        out = uncond(x, timestep) if guidance_scale != 1.0 else torch.zeros_like(x)
        if guidance_scale == 1.0:
            out = cond(x, timestep)
        elif guidance_scale != 0.0:
            out = out + guidance_scale * (cond(x, timestep) - out)
        return x0_from(prediction, out.double(), x, *schedule.alpha_sigma(t))

    return UPDATES[solver](denoise, schedule, schedule.grid(num_steps), x.double(), noise)


def x0_from(prediction: str, out: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The data that a raw prediction means."""
    if prediction == "epsilon":
        return (x - sigma * out) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * out
    return x - sigma * out if prediction == "flow" else out


def ddim(denoise: Denoise, schedule: Schedule, grid: tuple[float, ...], x: Tensor, noise: Noise) -> Tensor:
    """Song et al. 2020 (arXiv:2010.02502), eq. 12 with sigma_t = 0: predict x0, point back along the implied noise."""
    for t, t_next in zip(grid, grid[1:], strict=False):
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_next, sigma_next = schedule.alpha_sigma(t_next)
        x0 = denoise(x, t)
        eps = (x - alpha * x0) / sigma
        x = alpha_next * x0 + sigma_next * eps
    return x


def heun(denoise: Denoise, schedule: Schedule, grid: tuple[float, ...], x: Tensor, noise: Noise) -> Tensor:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn, in x / alpha and sigma / alpha."""
    for t, t_next in zip(grid, grid[1:], strict=False):
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_next, sigma_next = schedule.alpha_sigma(t_next)
        x0 = denoise(x, t)
        if alpha == 0.0 or sigma_next == 0.0:
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
            continue
        sigma_hat, sigma_hat_next = sigma / alpha, sigma_next / alpha_next
        x_hat = x / alpha
        d = (x_hat - x0) / sigma_hat
        x_hat_next = x_hat + (sigma_hat_next - sigma_hat) * d
        d_next = (x_hat_next - denoise(alpha_next * x_hat_next, t_next)) / sigma_hat_next
        x = alpha_next * (x_hat + (sigma_hat_next - sigma_hat) * 0.5 * (d + d_next))
    return x


def dpmpp_2m(denoise: Denoise, schedule: Schedule, grid: tuple[float, ...], x: Tensor, noise: Noise) -> Tensor:
    """Lu et al. 2022 (arXiv:2211.01095), algorithm 2; first order where lam is infinite on either side."""
    x0_previous, h_previous = None, math.inf
    for t, t_next in zip(grid, grid[1:], strict=False):
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_next, sigma_next = schedule.alpha_sigma(t_next)
        h = lam(alpha_next, sigma_next) - lam(alpha, sigma)
        x0 = denoise(x, t)
        d = x0
        if x0_previous is not None and math.isfinite(h) and math.isfinite(h_previous):
            r = h_previous / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_previous
        x = sigma_next / sigma * x - alpha_next * math.expm1(-h) * d
        x0_previous, h_previous = x0, h
    return x


def ddpm(denoise: Denoise, schedule: Schedule, grid: tuple[float, ...], x: Tensor, noise: Noise) -> Tensor:
    """Ho et al. 2020 (arXiv:2006.11239), algorithm 2 with the posterior mean and variance of eq. 7, on any grid."""
    for k, (t, t_next) in enumerate(zip(grid, grid[1:], strict=False)):
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_next, sigma_next = schedule.alpha_sigma(t_next)
        x0 = denoise(x, t)
        alpha_step = alpha / alpha_next
        variance_step = sigma**2 - alpha_step**2 * sigma_next**2  # beta_t where the path preserves variance
        mean = (alpha_step * sigma_next**2 * x + alpha_next * variance_step * x0) / sigma**2
        x = mean if t_next == 0.0 else mean + math.sqrt(variance_step * sigma_next**2 / sigma**2) * noise(k).double()
    return x


UPDATES: dict[str, Update] = {"euler": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m, "ddpm": ddpm}
