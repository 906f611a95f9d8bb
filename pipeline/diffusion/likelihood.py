"""How probable data is under a denoiser: by the probability-flow ODE, and by the discrete evidence lower bound.

Offline: both cost many more evaluations than drawing an image. Shapes: N rows of data (N, ...) with D numbers a row,
K probes. A denoiser maps x (N, ...) at a time t to the posterior mean of the data (N, ...), each row by itself. Randomness
comes in as an iterator, so that a caller can share it between rows or replace it by a quadrature.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.spacing import FIRST_TRAINED, check_grid
from safelight.pipeline.errors import InvalidParams

Denoise = Callable[[Tensor, float], Tensor]
Variance = Callable[[Schedule, float, float], float]
LEVEL_POWER = 3.0  # steps are equal in tau^(1/3): dense at the data, where the divergence grows as 1 / tau


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """log p(x) in nats; `samples` (K, N) has one unbiased estimate a probe, or the exact value with K = 1."""

    samples: Tensor
    is_exact: bool

    @property
    def nats(self) -> Tensor:
        """(N,): the mean over probes."""
        return self.samples.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """(N,): that of `nats`, from the spread of the probes; 0 if exact, not a number with one probe."""
        return standard_error(self.samples, self.is_exact)


@dataclass(frozen=True, slots=True)
class Elbo:
    """The terms of Ho et al. 2020 (arXiv:2006.11239), eq. 5, in nats and as they are there: divergences, at least 0 but for L_0.

    `l_T` (N,) prior; `l_t` (T - 1, N) the steps, noisiest first; `l_0` (N,) reconstruction, -log p(x | x_1).
    """

    l_T: Tensor
    l_t: Tensor
    l_0: Tensor

    @property
    def nats(self) -> Tensor:
        """(N,): the lower bound on log p(x)."""
        return -(self.l_T + self.l_t.sum(0) + self.l_0)


def log_likelihood(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    *,
    num_steps: int = 100,
    probes: Iterator[Tensor] | None = None,
    t_min: float = FIRST_TRAINED,
    prior: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> LogLikelihood:
    """log p(x) of data x (N, ...) in nats, by the probability-flow ODE from `t_min` to t = 1 in `num_steps` steps of RK4.

    Song et al. 2021 (arXiv:2011.13456), eq. 39. Integrated, as in `reference.adaptive`, in y = x / (alpha + sigma) over
    tau = sigma / (alpha + sigma), where dy / dtau = (y - x0) / tau. The result is the density, at x itself, of data blurred
    by noise of standard deviation sigma(t_min) / alpha(t_min): without a blur, data on a surface has no finite density.

    The divergence is exact, in D gradients an evaluation, unless `probes` yields (K, ...) a step: then it is Hutchinson's
    (1990) estimate as in FFJORD (Grathwohl et al. 2019, arXiv:1810.01367). Every step asks for new probes: the path does not
    depend on them, so the errors of steps average out; FFJORD must keep them, because its step sizes do depend on them. All
    rows share the probes: a row's value does not depend on its neighbours, and in a difference of two rows errors cancel.

    `prior` is the log density (N,) of x (N, ...) at t = 1; by default N(0, alpha(1)^2 + sigma(1)^2), that of data of unit
    variance. Where alpha(1) is not 0 it is not quite the end of the data: the error is about alpha(1) |E x| nats, 0.0064 |E x|
    on the linear schedule; on flows it is exact. `progress` is told the number of steps done. Memory is that of one evaluation with
    its gradient; x stays in its own dtype (float64 is meant).

    Raises `InvalidParams` for fewer than one step, `t_min` outside 0..1 (exclusive), and probes of another shape than x's.
    """
    if num_steps < 1:
        raise InvalidParams("num_steps", f"num_steps must be at least 1, got {num_steps}")
    if not 0.0 < t_min < 1.0:
        raise InvalidParams("t_min", f"t_min must lie between 0 and 1, got {t_min}")
    dims = x[0].numel()
    tau_min, tau_max = _tau(schedule, t_min), _tau(schedule, 1.0)

    def slope(y: Tensor, level: float, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """d / dlevel of y (N, ...) and of the integral of the divergence (K, N), where tau = level^3."""
        tau = min(level**LEVEL_POWER, tau_max)
        t = 1.0 if tau == tau_max else max(t_min, schedule.time_of(math.log((1.0 - tau) / tau)))
        scale = sum(schedule.alpha_sigma(t))
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            velocity = (y - denoise(y * scale, t)) / tau
            divergence = _trace(velocity, y) if z is None else _hutchinson(velocity, y, z)
        stretch = LEVEL_POWER * level ** (LEVEL_POWER - 1.0)
        return stretch * velocity.detach(), stretch * divergence

    low, high = (tau ** (1.0 / LEVEL_POWER) for tau in (tau_min, tau_max))
    h = (high - low) / num_steps
    y = (1.0 - tau_min) * x.detach()
    nats = x.new_full((1, len(x)), dims * math.log(1.0 - tau_min))
    for step in range(num_steps):
        z = None if probes is None else _checked(next(probes), x)
        level = low + step * h
        k1, d1 = slope(y, level, z)
        k2, d2 = slope(y + 0.5 * h * k1, level + 0.5 * h, z)
        k3, d3 = slope(y + 0.5 * h * k2, level + 0.5 * h, z)
        k4, d4 = slope(y + h * k3, level + h, z)
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        nats = nats + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)
        progress(step + 1)
    scale = sum(schedule.alpha_sigma(1.0))
    end = (prior or standard_prior(schedule))(y * scale)
    return LogLikelihood(nats + end + dims * math.log(scale), is_exact=probes is None)


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
    """The terms of the evidence lower bound of data x (N, ...), in nats, over a `grid` of times from 1 to 0 (`make_grid`).

    Ho et al. 2020 (arXiv:2006.11239), eq. 5: L_T against N(0, alpha(1)^2 + sigma(1)^2), a Kullback-Leibler divergence a step
    between the posterior q(x_s | x_t, x) and N(mean with the predicted data, `variance`(schedule, s, t)), and for the last
    step a Gaussian decoder of the same variance around the prediction. In the letters of Kingma et al. 2021
    (arXiv:2107.00630), appendix A: s < t, alpha_t|s = alpha_t / alpha_s, sigma^2_t|s = sigma_t^2 - alpha^2_t|s sigma_s^2.

    `noise` yields z (N, ...) a step, so one call is one sample of the expectation over noise: repeat rows for more. Raises
    `InvalidParams` for a grid that is not one from 1 to 0, noise of another shape than x's, a variance that is not positive.
    """
    times = check_grid(grid, len(grid) - 1)
    if len(times) < 2 or times[0] != 1.0 or times[-1] != 0.0:
        raise InvalidParams("grid", f"grid must run from 1 to 0, got {times}")
    alpha, sigma = schedule.alpha_sigma(1.0)
    spread = alpha**2 + sigma**2
    l_T = _kl(alpha * x, sigma**2, spread)
    steps = []
    for step, (t, s) in enumerate(pairwise(times)):
        alpha, sigma = schedule.alpha_sigma(t)
        z = next(noise).to(x)
        if z.shape != x.shape:
            raise InvalidParams(
                "noise", f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}"
            )
        with torch.no_grad():
            gap = x - denoise(alpha * x + sigma * z, t)
        v = variance(schedule, s, t)
        if not v > 0.0:
            raise InvalidParams(
                "variance", f"variances must be positive, got {v} for the step from {t} to {s}"
            )
        if s == 0.0:
            steps.append(0.5 * (gap.square() / v + math.log(2.0 * math.pi * v)).flatten(1).sum(1))
        else:
            alpha_s, sigma_s = schedule.alpha_sigma(s)
            mean_gap = alpha_s * fixed_large(schedule, s, t) / sigma**2 * gap
            steps.append(_kl(mean_gap, fixed_large(schedule, s, t) * sigma_s**2 / sigma**2, v))
        progress(step + 1)
    return Elbo(l_T, torch.stack(steps)[:-1], steps[-1])


def fixed_large(schedule: Schedule, s: float, t: float) -> float:
    """sigma^2_t|s of the step from t to s < t: beta_t where the path preserves variance (Ho et al. 2020, section 3.2)."""
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return sigma**2 - (alpha / alpha_s * sigma_s) ** 2


def fixed_small(schedule: Schedule, s: float, t: float) -> float:
    """The variance of q(x_s | x_t, x), beta tilde_t (Ho et al. 2020, eq. 7); at s = 0, where that is zero, `fixed_large`."""
    sigma, sigma_s = schedule.alpha_sigma(t)[1], schedule.alpha_sigma(s)[1]
    return fixed_large(schedule, s, t) * (sigma_s**2 / sigma**2 if s > 0.0 else 1.0)


def standard_prior(schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """log N(x; 0, alpha(1)^2 + sigma(1)^2) (N,) in nats of x (N, ...): the end of data of zero mean and unit variance."""
    alpha, sigma = schedule.alpha_sigma(1.0)
    variance = alpha**2 + sigma**2

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x.square() / variance + math.log(2.0 * math.pi * variance)).flatten(1).sum(1)

    return log_density


def rademacher(num: int, shape: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Endless probes (`num`, *shape) of independent signs, float32, on the processor; the same for the same seed.

    Raises `InvalidParams` for fewer than one probe, before the first is drawn.
    """
    if num < 1:
        raise InvalidParams("probes", f"at least 1 probe is needed, got {num}")
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 2, (num, *shape), generator=generator).mul(2).sub(1).float() for _ in iter(int, 1)
    )


def gaussian(shape: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Endless standard normal noise of `shape`, float64, on the processor; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator, dtype=torch.float64) for _ in iter(int, 1))


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """-`nats` / (`dims` ln 2): how many bits a number of x costs. Of a density, so it may be negative; no quantisation is added.

    Raises `InvalidParams` for fewer than one dimension.
    """
    if dims < 1:
        raise InvalidParams("dims", f"data has at least one dimension, got {dims}")
    return -nats / (dims * math.log(2.0))


def standard_error(samples: Tensor, is_exact: bool = False) -> Tensor:
    """That of the mean over K of `samples` (K, N), as (N,); 0 if they are exact, not a number with one sample."""
    if is_exact:
        return torch.zeros_like(samples[0])
    if len(samples) == 1:
        return torch.full_like(samples[0], math.nan)
    return samples.std(0) / math.sqrt(len(samples))


def _trace(velocity: Tensor, y: Tensor) -> Tensor:
    """The divergence (1, N), a gradient a dimension; rows do not see one another, so their sum has each row's gradient."""
    columns = velocity.flatten(1).sum(0).unbind()
    gradients = (
        torch.autograd.grad(column, y, retain_graph=True)[0].flatten(1)[:, i]
        for i, column in enumerate(columns)
    )
    return torch.stack(list(gradients)).sum(0)[None]


def _hutchinson(velocity: Tensor, y: Tensor, probes: Tensor) -> Tensor:
    """z^T J z (K, N) for each z of `probes` (K, ...): its mean is the divergence."""
    products = (torch.autograd.grad(velocity, y, z.expand_as(y), retain_graph=True)[0] * z for z in probes)
    return torch.stack([product.flatten(1).sum(1) for product in products])


def _checked(probes: Tensor, x: Tensor) -> Tensor:
    if probes.shape[1:] != x.shape[1:]:
        raise InvalidParams(
            "probes",
            f"probes must have the shape of a row of x, {tuple(x.shape[1:])}, got {tuple(probes.shape[1:])}",
        )
    return probes.to(x)


def _kl(mean_gap: Tensor, variance_q: float, variance_p: float) -> Tensor:
    """KL(q || p) (N,) in nats of two isotropic Gaussians whose means differ by `mean_gap` (N, ...)."""
    ratio = variance_q / variance_p
    return 0.5 * (mean_gap.square() / variance_p + (ratio - 1.0 - math.log(ratio))).flatten(1).sum(1)


def _tau(schedule: Schedule, t: float) -> float:
    alpha, sigma = schedule.alpha_sigma(t)
    return sigma / (alpha + sigma)
