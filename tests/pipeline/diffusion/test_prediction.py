"""Prediction types: golden values, and every type against an exact network."""

import math
from collections.abc import Callable

import pytest
import torch

from safelight.pipeline.diffusion.guidance import combine
from safelight.pipeline.diffusion.prediction import (
    PREDICTIONS,
    convert,
    out_coefficients,
    x0_coefficients,
)
from safelight.pipeline.diffusion.reference import x0_from
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT

SCHEDULES = [Flow(), VariancePreserving("linear"), VarianceExploding()]
X = 1.5 * torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_x0_from_eps_golden() -> None:
    p, q = x0_coefficients("epsilon", 0.5, math.sqrt(0.75))
    assert p * 1.5 + q * 0.8 == pytest.approx(1.614359, abs=5e-7)


def test_guidance_golden() -> None:
    cond, uncond = torch.tensor([0.3, 0.7]), torch.tensor([0.1, 0.1])
    assert combine(cond, uncond, torch.tensor(7.5)).tolist() == pytest.approx([1.6, 4.6], rel=1e-6)
    assert combine(cond, uncond, torch.tensor(1.0)).tolist() == pytest.approx(cond.tolist(), rel=1e-6)
    assert combine(cond, uncond, torch.tensor(0.0)).tolist() == uncond.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_exact_network_recovers_the_data_with_any_prediction_type(
    schedule: Schedule, t: float, prediction: str
) -> None:
    alpha, sigma = schedule.alpha_sigma(t)
    x = alpha * EIGHT.draw(5, torch.Generator().manual_seed(1)) + sigma * X
    out, x0 = EIGHT.out(prediction, x, alpha, sigma), EIGHT.x0(x, alpha, sigma)
    p, q = x0_coefficients(prediction, alpha, sigma)
    torch.testing.assert_close(p * x + q * out, x0, atol=1e-9, rtol=0)
    torch.testing.assert_close(x0_from(prediction, out, x, alpha, sigma), x0, atol=1e-9, rtol=0)


def test_tweedie() -> None:
    """The posterior mean equals that from the gradient of the density."""
    alpha, sigma = VariancePreserving().alpha_sigma(0.5)
    p, q = x0_coefficients("score", alpha, sigma)
    torch.testing.assert_close(
        p * X + q * EIGHT.score(X, alpha, sigma), EIGHT.x0(X, alpha, sigma), atol=1e-12, rtol=0
    )
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(EIGHT.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(gradient, EIGHT.score(X, alpha, sigma), atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_conversions_are_right_and_invertible_in_float32(
    schedule: Schedule, source: str, target: str
) -> None:
    alpha, sigma = schedule.alpha_sigma(0.4)
    out, expected = EIGHT.out(source, X, alpha, sigma), EIGHT.out(target, X, alpha, sigma)
    (u, w), (u_back, w_back) = convert(target, source, alpha, sigma), convert(source, target, alpha, sigma)
    torch.testing.assert_close(u * X + w * out, expected, atol=1e-9, rtol=0)
    x, single = X.float(), out.float()
    back = u_back * x + w_back * (u * x + w * single)
    scale = float(x.abs().max() + single.abs().max())
    assert float((back - single).abs().max()) <= 1e-6 * scale


@pytest.mark.parametrize(
    "call",
    [
        lambda: x0_coefficients("odd", 0.5, 0.5),
        lambda: x0_coefficients("epsilon", 0.0, 1.0),
        lambda: x0_coefficients("score", 0.0, 1.0),
        lambda: out_coefficients("epsilon", 1.0, 0.0),
        lambda: out_coefficients("flow", 1.0, 0.0),
        lambda: convert("odd", "flow", 0.5, 0.5),
        lambda: convert("flow", "odd", 0.5, 0.5),
    ],
)
def test_invalid_arguments_are_named(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidParams) as caught:
        call()
    assert caught.value.param == "prediction"


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow"])
def test_predictions_that_give_the_data_at_pure_noise(prediction: str) -> None:
    assert all(math.isfinite(v) for v in x0_coefficients(prediction, 0.0, 1.0))
