"""The discrete evidence lower bound on the likelihood of data under a denoiser.

Ho et al. 2020 (arXiv:2006.11239), eq. 5: L_T against N(0, alpha(1)^2 + sigma(1)^2); for each step the
Kullback-Leibler divergence between the posterior q(x_s | x_t, x) and a Gaussian around its mean with the
predicted data; for the last step a Gaussian decoder of the same variance around the prediction. Letters as in
Kingma et al. 2021 (arXiv:2107.00630), appendix A: s < t, alpha_t|s = alpha_t / alpha_s, sigma^2_t|s =
sigma_t^2 - alpha^2_t|s sigma_s^2. Shapes as in `likelihood`. Offline.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from safelight.pipeline.diffusion.likelihood import Denoise
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.spacing import check_grid
from safelight.pipeline.errors import InvalidParams

Variance = Callable[[Schedule, float, float], float]  # of the step from t to s, from (schedule, s, t)


@dataclass(frozen=True, slots=True)
class Elbo:
    """The terms of the evidence lower bound in nats, with the signs of Ho et al. 2020, eq. 5.

    `l_T` (N,) is the prior term, `l_t` (T - 1, N) the terms of the steps, noisiest first: divergences, at
    least 0. `l_0` (N,) is the reconstruction term, -log p(x | x_1).
    """

    l_T: Tensor
    l_t: Tensor
    l_0: Tensor

    @property
    def nats(self) -> Tensor:
        """The lower bound on log p(x) (N,)."""
        return -(self.l_T + self.l_t.sum(0) + self.l_0)


def elbo(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    grid: Sequence[float],
    *,
    noise: Iterator[Tensor],
    variance: Variance,
    progress: Callable[[int], None] = lambda step: None,
) -> Elbo:
    """The terms of the evidence lower bound in nats, as the module's docstring describes.

    Raises `InvalidParams` for arguments that do not fit.

    Args:
        denoise: the denoiser.
        schedule: the noise schedule that it was trained on.
        x: data (N, ...).
        grid: times from 1 to 0, as from `make_grid`.
        noise: yields z (N, ...) for each step; a call is one sample of the expectation over noise, so repeat
            rows for more.
        variance: the model's variance of the step from t to s, of (schedule, s, t); positive.
        progress: called with the number of steps done.
    """
    times = check_grid(grid, len(grid) - 1)
    if len(times) < 2 or times[0] != 1.0 or times[-1] != 0.0:
        raise InvalidParams("grid", f"grid must run from 1 to 0, got {times}")
    alpha, sigma = schedule.alpha_sigma(1.0)
    l_T = _kl(alpha * x, sigma**2, alpha**2 + sigma**2)
    terms = []
    for step, (t, s) in enumerate(pairwise(times)):
        gap = _denoising_error(denoise, schedule, x, next(noise), t)
        terms.append(_step_term(schedule, gap, s, t, variance(schedule, s, t)))
        progress(step + 1)
    return Elbo(l_T, torch.stack(terms)[:-1], terms[-1])


def fixed_large(schedule: Schedule, s: float, t: float) -> float:
    """sigma^2_t|s of the step from t to s < t (Ho et al. 2020, section 3.2).

    It is beta_t on variance-preserving schedules.
    """
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return sigma**2 - (alpha / alpha_s * sigma_s) ** 2


def _denoising_error(denoise: Denoise, schedule: Schedule, x: Tensor, z: Tensor, t: float) -> Tensor:
    """x minus its prediction (N, ...), after noising x (N, ...) with z (N, ...) to time t."""
    z = z.to(x)
    if z.shape != x.shape:
        raise InvalidParams(
            "noise", f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}"
        )
    alpha, sigma = schedule.alpha_sigma(t)
    with torch.no_grad():
        return x - denoise(alpha * x + sigma * z, t)


def _step_term(schedule: Schedule, gap: Tensor, s: float, t: float, v: float) -> Tensor:
    """The term (N,) of the step from t to s with variance v, for the denoising error `gap` (N, ...)."""
    if not v > 0.0:
        raise InvalidParams("variance", f"variances must be positive, got {v} for the step from {t} to {s}")
    if s == 0.0:
        return 0.5 * (gap.square() / v + math.log(2.0 * math.pi * v)).flatten(1).sum(1)
    sigma, (alpha_s, sigma_s) = schedule.alpha_sigma(t)[1], schedule.alpha_sigma(s)
    mean_gap = alpha_s * fixed_large(schedule, s, t) / sigma**2 * gap
    return _kl(mean_gap, fixed_large(schedule, s, t) * sigma_s**2 / sigma**2, v)


def _kl(mean_gap: Tensor, variance_q: float, variance_p: float) -> Tensor:
    """KL(q || p) (N,) in nats of two isotropic Gaussians whose means differ by `mean_gap` (N, ...)."""
    ratio = variance_q / variance_p
    return 0.5 * (mean_gap.square() / variance_p + (ratio - 1.0 - math.log(ratio))).flatten(1).sum(1)
