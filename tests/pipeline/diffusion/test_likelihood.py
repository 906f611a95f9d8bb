"""Likelihood by the probability-flow ODE and the discrete bound, against densities that are known exactly."""

import math
from collections.abc import Callable
from itertools import repeat

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.elbo import Variance, elbo, fixed_large, fixed_small
from safelight.pipeline.diffusion.likelihood import (
    bits_per_dim,
    gaussian,
    log_likelihood,
    rademacher,
    standard_error,
    standard_prior,
)
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.spacing import FIRST_TRAINED, make_grid
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT, GAUSSIAN, Mixture

VP, FLOW = VariancePreserving(), Flow()
ALL = [VP, VariancePreserving("scaled_linear"), VariancePreserving("cosine"), FLOW, VarianceExploding()]
# Narrow as latents are: half of the dimensions have hardly any width, one has none.
NARROW = Mixture.of(
    [0.4, 0.6],
    [[1.0, -0.5, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]],
    [[0.3, 1e-3, 0.0, 1e-5], [0.1, 1e-2, 0.0, 1e-5]],
)


def name(schedule: Schedule) -> str:
    return str(schedule)


def denoiser(data: Mixture, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    return lambda x, t: data.x0(x, *schedule.alpha_sigma(t))


def exact_prior(data: Mixture, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    return lambda x: data.log_density(x, *schedule.alpha_sigma(1.0))


def points(data: Mixture, num: int = 32) -> Tensor:
    return data.draw(num, torch.Generator().manual_seed(0))


def blurred(data: Mixture, schedule: Schedule, x: Tensor, t_min: float = FIRST_TRAINED) -> Tensor:
    """What the integral from `t_min` says without error."""
    alpha, sigma = schedule.alpha_sigma(t_min)
    return data.log_density(x, 1.0, sigma / alpha)


def rms(gap: Tensor) -> float:
    return float(gap.square().mean().sqrt())


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=name)
def test_the_density_of_the_mixture(schedule):
    x = points(EIGHT)
    found = log_likelihood(denoiser(EIGHT, schedule), schedule, x, num_steps=50, t_min=1e-5)
    assert rms(found.nats - EIGHT.log_density(x)) < 0.02
    assert found.standard_error.tolist() == [0.0] * len(x)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_with_the_exact_prior_only_the_steps_err(schedule):
    x = points(EIGHT, 8)
    found = log_likelihood(
        denoiser(EIGHT, schedule), schedule, x, num_steps=50, prior=exact_prior(EIGHT, schedule)
    )
    assert rms(found.nats - blurred(EIGHT, schedule, x)) < 2e-5


def test_near_the_data_the_blur_is_nothing():
    x = points(EIGHT, 8)
    found = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=50, t_min=1e-5, prior=exact_prior(EIGHT, VP))
    assert rms(found.nats - EIGHT.log_density(x)) < 3e-5


def test_the_mismatch_of_the_prior_is_the_one_documented():
    alpha, sigma = VP.alpha_sigma(1.0)
    x = points(EIGHT, 4096)
    noised = alpha * x + sigma * next(gaussian(x.shape, 1))
    gap = standard_prior(VP)(noised) - EIGHT.log_density(noised, alpha, sigma)
    assert rms(gap) == pytest.approx(alpha * float((EIGHT.weights @ EIGHT.means).norm()), rel=0.05)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=name)
def test_runge_kutta_is_of_order_four(schedule):
    x, truth = points(EIGHT, 8), blurred(EIGHT, schedule, points(EIGHT, 8))
    prior = exact_prior(EIGHT, schedule)
    errors = [
        rms(log_likelihood(denoiser(EIGHT, schedule), schedule, x, num_steps=n, prior=prior).nats - truth)
        for n in (20, 40)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=name)
def test_narrow_data_takes_no_more_steps(schedule):
    x = points(NARROW, 8)
    prior = exact_prior(NARROW, schedule)
    found = log_likelihood(denoiser(NARROW, schedule), schedule, x, num_steps=40, prior=prior)
    assert rms(found.nats - blurred(NARROW, schedule, x)) < 1e-3


def test_hutchinson_is_unbiased_and_knows_its_error():
    x = points(EIGHT, 16)
    exact = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=10)
    found = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=10, probes=rademacher(64, (8,), 3))
    assert found.samples.shape == (64, 16)
    mean = found.samples.mean(1, keepdim=True)  # rows share their probes: only the probes are independent
    assert abs(float((mean.mean() - exact.nats.mean()) / standard_error(mean))) < 3
    assert 0.2 < float(((found.nats - exact.nats) / found.standard_error).square().mean()) < 3


def test_new_probes_a_step_err_less_than_kept_ones():
    x = points(EIGHT, 8)
    kept, new = (
        log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=20, probes=probes).standard_error.mean()
        for probes in (repeat(next(rademacher(32, (8,), 5))), rademacher(32, (8,), 5))
    )
    assert float(new) < 0.7 * float(kept)


def test_a_row_does_not_depend_on_its_neighbours():
    x = points(EIGHT, 4)
    together, alone = (
        log_likelihood(denoiser(EIGHT, FLOW), FLOW, rows, num_steps=5, probes=rademacher(2, (8,), 7)).samples
        for rows in (x, x[2:3])
    )
    torch.testing.assert_close(together[:, 2:3], alone)


def test_rows_of_any_shape_and_every_step_is_told():
    x, told = points(EIGHT, 3), []
    flat = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=5)

    def folded(x: Tensor, t: float) -> Tensor:
        return denoiser(EIGHT, VP)(x.flatten(1), t).view_as(x)

    square = log_likelihood(folded, VP, x.view(3, 2, 2, 2), num_steps=5, progress=told.append)
    torch.testing.assert_close(square.nats, flat.nats)
    assert told == [1, 2, 3, 4, 5]


def test_one_probe_has_no_error_to_tell():
    found = log_likelihood(
        denoiser(EIGHT, FLOW), FLOW, points(EIGHT, 2), num_steps=2, probes=rademacher(1, (8,), 0)
    )
    assert found.standard_error.isnan().all()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"t_min": 0.0}, "t_min"),
        ({"t_min": 1.0}, "t_min"),
        ({"t_min": math.nan}, "t_min"),
        ({"probes": rademacher(2, (7,), 0)}, "probes"),
    ],
)
def test_what_cannot_be_integrated_is_refused(options, param):
    with pytest.raises(InvalidParams) as refused:
        log_likelihood(denoiser(EIGHT, VP), VP, points(EIGHT, 2), **options)
    assert refused.value.param == param


def test_no_probes_and_no_dimensions_are_refused():
    with pytest.raises(InvalidParams, match="at least 1 probe"):
        rademacher(0, (8,), 0)
    with pytest.raises(InvalidParams, match="at least one dimension"):
        bits_per_dim(torch.zeros(1), 0)


def test_bits():
    uniform = torch.full((1,), -8 * 3 * math.log(2.0))  # 3 bits in each of 8 dimensions
    assert float(bits_per_dim(uniform, 8)) == pytest.approx(3.0)


def expected_gap(data: Mixture, schedule: Schedule, num_steps: int, variance: Variance) -> float:
    """log p(x) minus the bound, a dimension, in expectation over the Gaussian `data` and over noise.

    Every term is quadratic in either, so two points each make an exact quadrature.
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
    """That of q(x_s | x_t) for data of variance c: `fixed_small` and what is not known of the data."""

    def variance(schedule: Schedule, s: float, t: float) -> float:
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        step = fixed_large(schedule, s, t)
        unknown = c * sigma**2 / (alpha**2 * c + sigma**2)
        return step * sigma_s**2 / sigma**2 + (alpha_s * step / sigma**2) ** 2 * unknown

    return variance


@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=name)
def test_the_bound_is_tight_with_the_exact_variance(schedule, num_steps):
    centred = Mixture.of([1.0], [[0.0]], [[0.25]])
    assert abs(expected_gap(centred, schedule, num_steps, exact_variance(0.25))) < 1e-9


def test_beta_is_the_exact_variance_of_unit_data():
    unit = Mixture.of([1.0], [[0.0]], [[1.0]])
    assert abs(expected_gap(unit, VP, 10, fixed_large)) < 1e-9


@pytest.mark.parametrize(("num_steps", "gap"), [(10, 0.094), (50, 0.021), (200, 0.0054), (1000, 0.0011)])
def test_the_gap_with_beta_falls_as_one_over_steps(num_steps, gap):
    centred = Mixture.of([1.0], [[0.0]], [[0.25]])
    assert expected_gap(centred, VP, num_steps, fixed_large) == pytest.approx(gap, rel=0.03)


def test_the_gap_with_the_posterior_variance_stays():
    centred = Mixture.of([1.0], [[0.0]], [[0.25]])
    assert [expected_gap(centred, VP, n, fixed_small) for n in (50, 200, 1000)] == pytest.approx(
        [0.802, 0.703, 0.456], abs=1e-3
    )


def test_the_bound_of_the_mixture_by_sampling():
    x = points(EIGHT, 16)
    many = x.repeat_interleave(256, 0)
    bound = elbo(
        denoiser(EIGHT, VP), VP, many, make_grid(VP, 10), noise=gaussian(many.shape, 1), variance=fixed_large
    )
    assert bound.l_t.shape == (9, 4096)
    assert float(bound.l_t.min()) >= 0.0
    assert float(bound.l_T.min()) >= 0.0
    each = bound.nats.view(16, 256).mean(0)  # 256 independent estimates of the mean over points
    gap, error = float(EIGHT.log_density(x).mean() - each.mean()), float(standard_error(each[:, None]))
    assert 3 * error < gap < 1.0


def test_the_same_seed_gives_the_same_bound():
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
def test_what_has_no_bound_is_refused(grid, noise, variance, param):
    with pytest.raises(InvalidParams) as refused:
        elbo(denoiser(GAUSSIAN, VP), VP, points(GAUSSIAN, 2), grid, noise=noise, variance=variance)
    assert refused.value.param == param
