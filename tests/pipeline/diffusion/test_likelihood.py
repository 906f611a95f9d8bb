"""Likelihood by the probability-flow ODE, against densities that are known exactly."""

import math
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.likelihood import (
    bits_per_dim,
    gaussian,
    log_likelihood,
    rademacher,
    standard_error,
    standard_prior,
)
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.spacing import FIRST_TRAINED
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT, Mixture

VP, FLOW = VariancePreserving(), Flow()
ALL = [VP, VariancePreserving("scaled_linear"), VariancePreserving("cosine"), FLOW, VarianceExploding()]
# As narrow as latents: half of the dimensions have almost no width, one has none.
NARROW = Mixture.of(
    [0.4, 0.6],
    [[1.0, -0.5, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]],
    [[0.3, 1e-3, 0.0, 1e-5], [0.1, 1e-2, 0.0, 1e-5]],
)


def denoiser(data: Mixture, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    return lambda x, t: data.x0(x, *schedule.alpha_sigma(t))


def exact_prior(data: Mixture, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    return lambda x: data.log_density(x, *schedule.alpha_sigma(1.0))


def points(data: Mixture, num: int = 32) -> Tensor:
    return data.draw(num, torch.Generator().manual_seed(0))


def blurred(data: Mixture, schedule: Schedule, x: Tensor, t_min: float = FIRST_TRAINED) -> Tensor:
    """The exact value of the integral from `t_min`."""
    alpha, sigma = schedule.alpha_sigma(t_min)
    return data.log_density(x, 1.0, sigma / alpha)


def rms(gap: Tensor) -> float:
    return float(gap.square().mean().sqrt())


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=str)
def test_the_density_of_the_mixture(schedule: Schedule) -> None:
    x = points(EIGHT)
    result = log_likelihood(denoiser(EIGHT, schedule), schedule, x, num_steps=50, t_min=1e-5)
    assert rms(result.nats - EIGHT.log_density(x)) < 0.02
    assert result.standard_error.tolist() == [0.0] * len(x)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_with_the_exact_prior_only_steps_have_errors(schedule: Schedule) -> None:
    x = points(EIGHT, 8)
    result = log_likelihood(
        denoiser(EIGHT, schedule), schedule, x, num_steps=50, prior=exact_prior(EIGHT, schedule)
    )
    assert rms(result.nats - blurred(EIGHT, schedule, x)) < 2e-5


def test_a_small_t_min_has_no_blur() -> None:
    x = points(EIGHT, 8)
    result = log_likelihood(
        denoiser(EIGHT, VP), VP, x, num_steps=50, t_min=1e-5, prior=exact_prior(EIGHT, VP)
    )
    assert rms(result.nats - EIGHT.log_density(x)) < 3e-5


def test_the_mismatch_of_the_prior_is_the_one_documented() -> None:
    alpha, sigma = VP.alpha_sigma(1.0)
    x = points(EIGHT, 4096)
    noised = alpha * x + sigma * next(gaussian(x.shape, 1))
    gap = standard_prior(VP)(noised) - EIGHT.log_density(noised, alpha, sigma)
    assert rms(gap) == pytest.approx(alpha * float((EIGHT.weights @ EIGHT.means).norm()), rel=0.05)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=str)
def test_runge_kutta_is_of_order_four(schedule: Schedule) -> None:
    x, truth = points(EIGHT, 8), blurred(EIGHT, schedule, points(EIGHT, 8))
    prior = exact_prior(EIGHT, schedule)
    errors = [
        rms(log_likelihood(denoiser(EIGHT, schedule), schedule, x, num_steps=n, prior=prior).nats - truth)
        for n in (20, 40)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=str)
def test_narrow_data_takes_no_more_steps(schedule: Schedule) -> None:
    x = points(NARROW, 8)
    prior = exact_prior(NARROW, schedule)
    result = log_likelihood(denoiser(NARROW, schedule), schedule, x, num_steps=40, prior=prior)
    assert rms(result.nats - blurred(NARROW, schedule, x)) < 1e-3


def test_hutchinson_is_unbiased_and_estimates_its_error() -> None:
    x = points(EIGHT, 16)
    exact = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=10)
    result = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=10, probes=rademacher(64, (8,), 3))
    assert result.samples.shape == (64, 16)
    mean = result.samples.mean(1, keepdim=True)  # rows share their probes: only the probes are independent
    assert abs(float((mean.mean() - exact.nats.mean()) / standard_error(mean))) < 3
    assert 0.2 < float(((result.nats - exact.nats) / result.standard_error).square().mean()) < 3


def test_new_probes_in_every_step_have_smaller_errors() -> None:
    x = points(EIGHT, 8)
    kept, new = (
        log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=20, probes=probes).standard_error.mean()
        for probes in (repeat(next(rademacher(32, (8,), 5))), rademacher(32, (8,), 5))
    )
    assert float(new) < 0.7 * float(kept)


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    x = points(EIGHT, 4)
    together, alone = (
        log_likelihood(denoiser(EIGHT, FLOW), FLOW, rows, num_steps=5, probes=rademacher(2, (8,), 7)).samples
        for rows in (x, x[2:3])
    )
    torch.testing.assert_close(together[:, 2:3], alone)


def test_rows_of_any_shape_and_progress_of_every_step() -> None:
    x = points(EIGHT, 3)
    steps: list[int] = []
    flat = log_likelihood(denoiser(EIGHT, VP), VP, x, num_steps=5)

    def folded(x: Tensor, t: float) -> Tensor:
        return denoiser(EIGHT, VP)(x.flatten(1), t).view_as(x)

    square = log_likelihood(folded, VP, x.view(3, 2, 2, 2), num_steps=5, progress=steps.append)
    torch.testing.assert_close(square.nats, flat.nats)
    assert steps == [1, 2, 3, 4, 5]


def test_one_probe_has_no_standard_error() -> None:
    result = log_likelihood(
        denoiser(EIGHT, FLOW), FLOW, points(EIGHT, 2), num_steps=2, probes=rademacher(1, (8,), 0)
    )
    assert result.standard_error.isnan().all()


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
def test_invalid_arguments_are_named(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        log_likelihood(denoiser(EIGHT, VP), VP, points(EIGHT, 2), **options)
    assert caught.value.param == param


def test_no_probes_and_no_dimensions_are_refused() -> None:
    with pytest.raises(InvalidParams, match="at least 1 probe"):
        rademacher(0, (8,), 0)
    with pytest.raises(InvalidParams, match="at least one dimension"):
        bits_per_dim(torch.zeros(1), 0)


def test_bits_per_dim() -> None:
    uniform = torch.full((1,), -8 * 3 * math.log(2.0))  # 3 bits in each of 8 dimensions
    assert float(bits_per_dim(uniform, 8)) == pytest.approx(3.0)
