"""The evidence lower bound, against densities that are known exactly."""

from collections.abc import Iterator
from itertools import repeat

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.elbo import Variance, elbo, fixed_large
from safelight.pipeline.diffusion.likelihood import Denoise, gaussian, standard_error
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.diffusion.spacing import make_grid
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT, GAUSSIAN, Mixture

VP, FLOW = VariancePreserving(), Flow()


def denoiser(data: Mixture, schedule: Schedule) -> Denoise:
    return lambda x, t: data.x0(x, *schedule.alpha_sigma(t))


def points(data: Mixture, num: int) -> Tensor:
    return data.draw(num, torch.Generator().manual_seed(0))


def expected_gap(data: Mixture, schedule: Schedule, num_steps: int, variance: Variance) -> float:
    """log p(x) minus the bound, per dimension, in expectation over the Gaussian `data` and over noise.

    Every term is quadratic in both, so two points of each make an exact quadrature.
    """
    mean, spread = data.means[0], data.variances[0].sqrt()
    x = torch.stack([mean + spread, mean + spread, mean - spread, mean - spread])
    z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None].expand_as(x)
    bound = elbo(
        denoiser(data, schedule),
        schedule,
        x,
        make_grid(schedule, num_steps),
        noise=repeat(z),
        variance=variance,
    )
    return float((data.log_density(x) - bound.nats).mean()) / x.shape[1]


def exact_variance(c: float) -> Variance:
    """The variance of q(x_s | x_t) for data of variance c: given x too, plus that of x given x_t."""

    def variance(schedule: Schedule, s: float, t: float) -> float:
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        step = fixed_large(schedule, s, t)
        data_variance = c * sigma**2 / (alpha**2 * c + sigma**2)
        return step * sigma_s**2 / sigma**2 + (alpha_s * step / sigma**2) ** 2 * data_variance

    return variance


@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=str)
def test_the_bound_is_tight_with_the_exact_variance(schedule: Schedule, num_steps: int) -> None:
    centred = Mixture.of([1.0], [[0.0]], [[0.25]])
    assert abs(expected_gap(centred, schedule, num_steps, exact_variance(0.25))) < 1e-9


def test_beta_is_the_exact_variance_of_unit_data() -> None:
    unit = Mixture.of([1.0], [[0.0]], [[1.0]])
    assert abs(expected_gap(unit, VP, 10, fixed_large)) < 1e-9


@pytest.mark.parametrize(("num_steps", "gap"), [(10, 0.094), (50, 0.021), (200, 0.0054), (1000, 0.0011)])
def test_the_gap_with_beta_falls_as_one_over_steps(num_steps: int, gap: float) -> None:
    centred = Mixture.of([1.0], [[0.0]], [[0.25]])
    assert expected_gap(centred, VP, num_steps, fixed_large) == pytest.approx(gap, rel=0.03)


def test_the_bound_of_the_mixture_by_sampling() -> None:
    x = points(EIGHT, 16)
    many = x.repeat_interleave(256, 0)
    bound = elbo(
        denoiser(EIGHT, VP), VP, many, make_grid(VP, 10), noise=gaussian(many.shape, 1), variance=fixed_large
    )
    assert bound.l_t.shape == (9, 4096)
    assert float(bound.l_t.min()) >= 0.0
    assert float(bound.l_T.min()) >= 0.0
    estimates = bound.nats.view(16, 256).mean(0)  # 256 independent estimates of the mean over points
    gap = float(EIGHT.log_density(x).mean() - estimates.mean())
    error = float(standard_error(estimates[:, None]))
    assert 3 * error < gap < 1.0


def test_the_same_seed_gives_the_same_bound() -> None:
    x = points(GAUSSIAN, 4)
    first, second = (
        elbo(
            denoiser(GAUSSIAN, VP), VP, x, make_grid(VP, 5), noise=gaussian(x.shape, 4), variance=fixed_large
        ).nats
        for _ in range(2)
    )
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("grid", "noise", "variance", "param"),
    [
        ((1.0, 0.5), gaussian((2, 1), 0), fixed_large, "grid"),
        ((0.9, 0.0), gaussian((2, 1), 0), fixed_large, "grid"),
        ((1.0,), gaussian((2, 1), 0), fixed_large, "grid"),
        ((1.0, 0.0), gaussian((1, 1), 0), fixed_large, "noise"),
        ((1.0, 0.0), gaussian((2, 1), 0), lambda *_: 0.0, "variance"),
    ],
)
def test_invalid_arguments_are_named(
    grid: tuple[float, ...], noise: Iterator[Tensor], variance: Variance, param: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        elbo(denoiser(GAUSSIAN, VP), VP, points(GAUSSIAN, 2), grid, noise=noise, variance=variance)
    assert caught.value.param == param
