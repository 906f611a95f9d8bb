"""Both likelihood methods, on data whose density is known exactly."""

import pytest
import torch

from safelight.pipeline.diffusion.schedules import Flow, VariancePreserving
from safelight.pipeline.evaluation.likelihood import METHODS
from tests.pipeline.oracle import EIGHT

POINTS = EIGHT.draw(16, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()], ids=str)
def test_the_bound_is_below_the_density_and_approaches_it(schedule: Flow | VariancePreserving) -> None:
    def nats(method: str, num_steps: int, num_probes: int) -> float:
        samples = METHODS[method](denoise, schedule, POINTS, num_steps, num_probes, 0, shares.append)
        assert samples.shape == (num_probes, len(POINTS))
        return float(samples.mean())

    def denoise(x: torch.Tensor, t: float) -> torch.Tensor:
        return EIGHT.x0(x, *schedule.alpha_sigma(t))

    shares: list[float] = []
    exact = float(EIGHT.log_density(POINTS).mean())
    assert nats("ode", 60, 40) == pytest.approx(exact, abs=0.1)  # the spread of 40 probes
    few, many = nats("elbo", 50, 60), nats("elbo", 400, 60)
    assert exact - 2.5 < few < many - 0.3
    assert exact - 0.5 < many < exact + 0.05
    assert [shares[0], shares[-1]] == [1 / 60, 1.0]
    assert all(0.0 < share <= 1.0 for share in shares)
