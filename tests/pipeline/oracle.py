"""Data with a known exact network: mixtures of Gaussians with diagonal covariances, at any alpha and sigma.

Shapes: N points, D dimensions, K components. Everything is float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.pipeline.diffusion import solvers
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.solvers import Plan


@dataclass(frozen=True)
class Mixture:
    """A mixture: weights (K,), means (K, D), variances (K, D).

    With one component it is a Gaussian, whose maps have closed forms.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, weights: list[float], means: list[list[float]], variances: list[list[float]]) -> "Mixture":
        return cls(*(torch.tensor(v, dtype=torch.float64) for v in (weights, means, variances)))

    def x0(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The posterior mean of the data (N, D) given x (N, D)."""
        total = alpha**2 * self.variances + sigma**2
        gap = x[:, None] - alpha * self.means
        component_means = self.means + alpha * self.variances / total * gap
        return (self._shares(x, alpha, sigma)[..., None] * component_means).sum(1)

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return (x - alpha * self.x0(x, alpha, sigma)) / sigma

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The gradient of `log_density`, derived from the density, not from the posterior mean."""
        total = alpha**2 * self.variances + sigma**2
        return (self._shares(x, alpha, sigma)[..., None] * -(x[:, None] - alpha * self.means) / total).sum(1)

    def out(self, prediction: str, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The output of a perfect network of that prediction type."""
        x0 = self.x0(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        return {
            "sample": x0,
            "epsilon": eps,
            "v_prediction": alpha * eps - sigma * x0,
            "flow": eps - x0,
            "score": -eps / sigma,
        }[prediction]

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """log p(x) (N,) of the data, or of noised data."""
        return torch.logsumexp(self._joint(x, alpha, sigma), dim=1)

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        components = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        z = torch.randn(num, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[components] + self.variances[components].sqrt() * z

    def _joint(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        total = alpha**2 * self.variances + sigma**2
        square = (x[:, None] - alpha * self.means) ** 2 / total + total.log() + math.log(2 * math.pi)
        return self.weights.log() - 0.5 * square.sum(-1)

    def _shares(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return self._joint(x, alpha, sigma).softmax(dim=1)


GAUSSIAN = Mixture.of([1.0], [[0.7]], [[0.25]])
# for the distributions of stochastic solvers
MODES = Mixture.of([0.3, 0.5, 0.2], [[-2.0], [0.5], [2.5]], [[0.09], [0.04], [0.16]])
EIGHT = Mixture.of(
    [0.2, 0.5, 0.3],
    [
        [1.0, -0.5, 0.3, 0.8, -1.2, 0.1, 0.4, -0.7],
        [-0.6, 0.9, -0.2, 0.5, 0.7, -1.1, 0.2, 0.3],
        [0.2, 0.1, 1.3, -0.9, 0.4, 0.6, -0.8, 1.0],
    ],
    [
        [0.3, 0.2, 0.5, 0.4, 0.3, 0.25, 0.6, 0.35],
        [0.4, 0.3, 0.2, 0.5, 0.6, 0.3, 0.25, 0.4],
        [0.25, 0.5, 0.3, 0.2, 0.4, 0.5, 0.3, 0.6],
    ],
)


def gaussian_map(data: Mixture, schedule: Schedule, t: float, t_end: float, x: Tensor) -> Tensor:
    """x (N, D) at t_end by the probability-flow ODE from x at t, in closed form, for one Gaussian."""
    (a_t, s_t), (a_s, s_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(t_end)
    mean, variance = data.means[0], data.variances[0]
    scale = ((a_s**2 * variance + s_s**2) / (a_t**2 * variance + s_t**2)).sqrt()
    return a_s * mean + scale * (x - a_t * mean)


def wasserstein(x: Tensor, y: Tensor) -> float:
    """W1 of two one-dimensional sets of samples of equal size."""
    return float((x.flatten().sort().values - y.flatten().sort().values).abs().mean())


def wasserstein_to(data: Mixture, x: Tensor) -> float:
    """W1 of samples (N, 1) to one-dimensional data: the area between the two distribution functions."""
    samples = x.flatten().sort().values
    z = torch.linspace(float(samples[0]) - 1.0, float(samples[-1]) + 1.0, 20001, dtype=torch.float64)
    cdf = torch.special.ndtr((z[:, None] - data.means[:, 0]) / data.variances[:, 0].sqrt())
    exact = (data.weights * cdf).sum(1)
    empirical = torch.searchsorted(samples, z, right=True) / len(samples)
    return float((exact - empirical).abs().mean() * (z[-1] - z[0]))


def execute(
    plan: Plan,
    network: Callable[[Tensor, float], Tensor],
    x: Tensor,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """`execute_plan` for a network that is a formula of time: `network(x, t)` is the raw output."""
    return solvers.execute_plan(plan, lambda x, tick: network(x, tick.t), x, noise)
