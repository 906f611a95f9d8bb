"""The adaptive reference solution, and the reference loop as a whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.reference import generate_one
from safelight.pipeline.diffusion.reference.adaptive import rk45
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT, GAUSSIAN, gaussian_map

LINEAR = VariancePreserving("linear")


def start(count: int, size: int) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("schedule", "t"), [(Flow(), 1.0), (LINEAR, 1.0), (VarianceExploding(), 1.0), (Flow(), 0.6)], ids=str
)
def test_rk45_follows_the_closed_form(schedule: Schedule, t: float) -> None:
    x = schedule.alpha_sigma(t)[1] * start(16, 1)
    end, _ = rk45(
        lambda x, t: GAUSSIAN.x0(x, *schedule.alpha_sigma(t)), schedule, t, 0.01, x, rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(end, gaussian_map(GAUSSIAN, schedule, t, 0.01, x), atol=2e-6, rtol=0)


def test_rk45_keeps_its_tolerance_on_a_mixture_with_more_evaluations() -> None:
    def solve(rtol: float) -> tuple[Tensor, int]:
        return rk45(
            lambda x, t: EIGHT.x0(x, *Flow().alpha_sigma(t)),
            Flow(),
            1.0,
            0.001,
            start(16, 8),
            rtol=rtol,
            atol=rtol / 1000,
        )

    exact, _ = solve(1e-10)
    bounds = {1e-3: 7e-3, 1e-5: 2e-4, 1e-7: 2e-6}
    solutions = {rtol: solve(rtol) for rtol in bounds}
    for rtol, bound in bounds.items():
        assert float((solutions[rtol][0] - exact).abs().max()) < bound
    counts = [evaluations for _, evaluations in solutions.values()]
    assert counts == sorted(set(counts))
    assert counts[-1] < 400
    # seven stages, the last of which is the first of the next step
    assert all((count - 1) % 6 == 0 for count in counts)


@pytest.mark.parametrize(
    ("t", "t_end", "rtol", "param"),
    [
        (1.0, 0.0, 1e-3, "grid"),
        (0.5, 0.6, 1e-3, "grid"),
        (1.1, 0.5, 1e-3, "grid"),
        (1.0, 0.5, 0.0, "rtol"),
        (1.0, 0.5, -1.0, "rtol"),
    ],
)
def test_rk45_names_invalid_arguments(t: float, t_end: float, rtol: float, param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        rk45(lambda x, t: x, Flow(), t, t_end, start(1, 1), rtol=rtol)
    assert caught.value.param == param


def draw(**options: Any) -> Tensor:
    """A (2, 2, 2) image of the mixture, under guidance."""

    def network(x: Tensor, timestep: float) -> Tensor:
        return EIGHT.out("flow", x.reshape(1, 8), *Flow().alpha_sigma(timestep / 1000)).reshape(2, 2, 2)

    x = start(1, 8).reshape(2, 2, 2)
    arguments: dict[str, Any] = {"guidance_scale": 3.0, "solver": "euler", "num_steps": 6} | options
    return generate_one(
        network,
        lambda x, t: 0.5 * network(x, t),
        arguments.pop("guidance_scale"),
        "flow",
        Flow(),
        arguments.pop("solver"),
        arguments.pop("num_steps"),
        x,
        lambda k: start(k + 1, 8)[k].reshape(2, 2, 2),
        **arguments,
    )


def test_guidance_acts_only_in_its_interval() -> None:
    # no step evaluates within the first interval
    assert torch.equal(draw(guidance_scale=1.0), draw(guidance_interval=(0.01, 0.02)))
    assert not torch.allclose(draw(guidance_scale=1.0), draw(guidance_interval=(0.4, 0.6)))
    assert torch.equal(draw(), draw(guidance_interval=(0.0, 1.0)))


def test_rescaled_guidance_has_the_spread_of_the_prompted_output() -> None:
    # one Euler step from pure noise ends at x - out, so the image gives the output
    x = start(1, 8).reshape(2, 2, 2)
    outs = {phi: x - draw(num_steps=1, guidance_rescale=phi) for phi in (0.0, 0.5, 1.0)}
    prompted = x - draw(num_steps=1, guidance_scale=1.0)
    assert float(outs[1.0].std()) == pytest.approx(float(prompted.std()))
    assert float(outs[0.0].std()) > 1.5 * float(prompted.std())
    torch.testing.assert_close(outs[0.5], (outs[0.0] + outs[1.0]) / 2)


def test_the_reference_knows_eta() -> None:
    assert torch.equal(draw(solver="ddim"), draw(solver="euler"))
    torch.testing.assert_close(draw(solver="ddim", eta=1.0), draw(solver="ddpm"))
    assert not torch.allclose(draw(solver="ddim", eta=0.5), draw(solver="euler"))
