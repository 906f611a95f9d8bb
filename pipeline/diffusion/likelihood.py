"""Likelihood of data under a denoiser, by the probability-flow ODE.

Song et al. 2021 (arXiv:2011.13456), eq. 39. Offline: it takes many more evaluations than generating an image.
Shapes: N rows of data (N, ...) with D numbers each, K probes. A denoiser maps x (N, ...) at time t to the
posterior mean of the data (N, ...), each row by itself. Random numbers are passed in as an iterator, so a
caller can share them between rows or replace them by a quadrature.

The ODE is integrated, as in `reference.adaptive`, in y = x / (alpha + sigma) over tau = sigma / (alpha +
sigma), where dy / dtau = (y - x0) / tau. The result is the density, at x itself, of data blurred by noise of
standard deviation sigma(t_min) / alpha(t_min): without a blur, data on a surface has no finite density.

The divergence is exact, in D gradients per evaluation, or Hutchinson's (1990) estimate from random probes as
in FFJORD (Grathwohl et al. 2019, arXiv:1810.01367). Every step takes new probes: the path does not depend on
them, so the errors of the steps average out. FFJORD must keep its probes, because its step sizes depend on
them. All rows share the probes, so a row's value does not depend on its batch-mates, and errors cancel in a
difference of two rows.

The default prior at t = 1, N(0, alpha(1)^2 + sigma(1)^2), is exact on flows. Where alpha(1) is not 0, noised
data is not quite distributed so: the error is about alpha(1) |E x| nats, 0.0064 |E x| on the linear schedule.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule, noise_fraction
from safelight.pipeline.diffusion.spacing import FIRST_TRAINED
from safelight.pipeline.errors import InvalidParams

Denoise = Callable[[Tensor, float], Tensor]
LEVEL_POWER = 3.0  # steps are equal in tau^(1/3): dense at the data, where the divergence grows as 1 / tau


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """log p(x) in nats: `samples` (K, N) has an unbiased estimate per probe, or, with K = 1, exact values."""

    samples: Tensor
    is_exact: bool

    @property
    def nats(self) -> Tensor:
        """The mean over probes (N,)."""
        return self.samples.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of `nats` (N,), from the spread over probes; 0 if exact, NaN with one probe."""
        return standard_error(self.samples, self.is_exact)


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
    """log p(x) in nats by the probability-flow ODE, as the module's docstring describes.

    Memory is that of one evaluation with its gradient. Raises `InvalidParams` for arguments that do not fit.

    Args:
        denoise: the denoiser.
        schedule: the noise schedule that it was trained on.
        x: data (N, ...); computed in its own dtype, for which float64 is meant.
        num_steps: steps of RK4, at least 1.
        probes: yields probes (K, ...) for each step; None for the exact divergence.
        t_min: where the integral starts, between 0 and 1.
        prior: log density (N,) of x (N, ...) at t = 1; default `standard_prior(schedule)`.
        progress: called with the number of steps done.
    """
    ode = _ProbabilityFlow(denoise, schedule, t_min)
    h = ode.step_size(num_steps)
    y, nats = ode.start(x)
    for step in range(num_steps):
        z = None if probes is None else _checked(next(probes), x)
        dy, d_nats = ode.step(y, ode.low + step * h, h, z)
        y, nats = y + dy, nats + d_nats
        progress(step + 1)
    return LogLikelihood(ode.finish(y, nats, prior or standard_prior(schedule)), is_exact=probes is None)


@dataclass(frozen=True, slots=True)
class _ProbabilityFlow:
    """The ODE of y and log p over level = tau^(1 / `LEVEL_POWER`), from `t_min` to t = 1."""

    denoise: Denoise
    schedule: Schedule
    t_min: float

    def __post_init__(self) -> None:
        if not 0.0 < self.t_min < 1.0:
            raise InvalidParams("t_min", f"t_min must lie between 0 and 1, got {self.t_min}")

    @property
    def tau_min(self) -> float:
        return noise_fraction(self.schedule, self.t_min)

    @property
    def tau_max(self) -> float:
        return noise_fraction(self.schedule, 1.0)

    @property
    def low(self) -> float:
        """The level at `t_min`."""
        return float(self.tau_min ** (1.0 / LEVEL_POWER))

    @property
    def high(self) -> float:
        """The level at t = 1."""
        return float(self.tau_max ** (1.0 / LEVEL_POWER))

    def step_size(self, num_steps: int) -> float:
        """The level that each of `num_steps` equal steps covers."""
        if num_steps < 1:
            raise InvalidParams("num_steps", f"num_steps must be at least 1, got {num_steps}")
        return (self.high - self.low) / num_steps

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y (N, ...) and log p (1, N) at `t_min`, of data x (N, ...)."""
        y = (1.0 - self.tau_min) * x.detach()
        return y, x.new_full((1, len(x)), x[0].numel() * math.log(1.0 - self.tau_min))

    def step(self, y: Tensor, level: float, h: float, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """The changes of y (N, ...) and of log p (K, N) over a step h from `level`, by RK4."""
        k1, d1 = self.slope(y, level, z)
        k2, d2 = self.slope(y + 0.5 * h * k1, level + 0.5 * h, z)
        k3, d3 = self.slope(y + 0.5 * h * k2, level + 0.5 * h, z)
        k4, d4 = self.slope(y + h * k3, level + h, z)
        return h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)

    def slope(self, y: Tensor, level: float, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """d / dlevel of y (N, ...) and of the integral of the divergence (K, N)."""
        tau = min(level**LEVEL_POWER, self.tau_max)
        if tau == self.tau_max:
            t = 1.0
        else:
            t = max(self.t_min, self.schedule.time_of(math.log((1.0 - tau) / tau)))
        scale = sum(self.schedule.alpha_sigma(t))
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            velocity = (y - self.denoise(y * scale, t)) / tau
            divergence = _trace(velocity, y) if z is None else _hutchinson(velocity, y, z)
        stretch = LEVEL_POWER * level ** (LEVEL_POWER - 1.0)
        return stretch * velocity.detach(), stretch * divergence

    def finish(self, y: Tensor, nats: Tensor, prior: Callable[[Tensor], Tensor]) -> Tensor:
        """log p of the data (K, N), from y (N, ...) at t = 1 and the integral `nats` (K, N)."""
        scale = sum(self.schedule.alpha_sigma(1.0))
        return nats + prior(y * scale) + y[0].numel() * math.log(scale)


def standard_prior(schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """log N(x; 0, alpha(1)^2 + sigma(1)^2) (N,) in nats of x (N, ...).

    The density at t = 1 of standard normal data.
    """
    alpha, sigma = schedule.alpha_sigma(1.0)
    variance = alpha**2 + sigma**2

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x.square() / variance + math.log(2.0 * math.pi * variance)).flatten(1).sum(1)

    return log_density


def rademacher(num: int, shape: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Endless probes (`num`, *shape) of independent random signs, float32, on the CPU, determined by `seed`.

    Raises `InvalidParams` for fewer than one probe, at the call.
    """
    if num < 1:
        raise InvalidParams("probes", f"at least 1 probe is needed, got {num}")
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 2, (num, *shape), generator=generator).mul(2).sub(1).float() for _ in iter(int, 1)
    )


def gaussian(shape: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Endless standard normal noise of `shape`, float64, on the CPU, determined by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator, dtype=torch.float64) for _ in iter(int, 1))


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Bits per dimension, -`nats` / (`dims` ln 2), without quantisation.

    They are negative where the density is above 1. Raises `InvalidParams` for fewer than one dimension.
    """
    if dims < 1:
        raise InvalidParams("dims", f"data has at least one dimension, got {dims}")
    return -nats / (dims * math.log(2.0))


def standard_error(samples: Tensor, is_exact: bool = False) -> Tensor:
    """The standard error (N,) of the mean of `samples` (K, N) over K; 0 if exact, NaN with one sample."""
    if is_exact:
        return torch.zeros_like(samples[0])
    if len(samples) == 1:
        return torch.full_like(samples[0], math.nan)
    return samples.std(0) / math.sqrt(len(samples))


def _trace(velocity: Tensor, y: Tensor) -> Tensor:
    """The divergence (1, N), by one gradient per dimension.

    Rows are independent, so the gradient of their sum holds the gradient of each.
    """
    columns = velocity.flatten(1).sum(0).unbind()
    gradients = (
        torch.autograd.grad(column, y, retain_graph=True)[0].flatten(1)[:, i]
        for i, column in enumerate(columns)
    )
    return torch.stack(list(gradients)).sum(0)[None]


def _hutchinson(velocity: Tensor, y: Tensor, probes: Tensor) -> Tensor:
    """z^T J z (K, N) for each z of `probes` (K, ...); its expectation is the divergence."""
    products = (torch.autograd.grad(velocity, y, z.expand_as(y), retain_graph=True)[0] * z for z in probes)
    return torch.stack([product.flatten(1).sum(1) for product in products])


def _checked(probes: Tensor, x: Tensor) -> Tensor:
    """`probes` (K, ...) in the dtype and on the device of x (N, ...)."""
    if probes.shape[1:] != x.shape[1:]:
        raise InvalidParams(
            "probes",
            f"probes must have the shape of a row of x, {tuple(x.shape[1:])}, got {tuple(probes.shape[1:])}",
        )
    return probes.to(x)
