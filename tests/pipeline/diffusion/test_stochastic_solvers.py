"""Stochastic solvers, judged by the distribution of their samples: W1 to a mixture of three narrow modes.

In float32 with many samples. W1 of 40 000 exact samples is about 0.01, the floor of every distance here.
Seeds are fixed.
"""

import math
from collections.abc import Callable, Hashable
from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from tests.pipeline.oracle import MODES, execute, wasserstein_to

LINEAR = VariancePreserving("linear")
COUNT = 40_000


def denoiser(schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    """`MODES.x0` for one dimension, thirty times faster, since a test takes a thousand ticks."""
    modes = [
        *zip(*(v.flatten().tolist() for v in (MODES.weights, MODES.means, MODES.variances)), strict=True)
    ]

    def x0(x: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        posteriors, logits = [], []
        for weight, mean, variance in modes:
            spread = alpha**2 * variance + sigma**2
            gap = x - alpha * mean
            posteriors.append(mean + alpha * variance / spread * gap)
            logits.append(gap.square() * (-0.5 / spread) + math.log(weight / math.sqrt(spread)))
        largest = logits[0].maximum(logits[1]).maximum(logits[2])
        shares = [(logit - largest).exp() for logit in logits]
        weighted = [share * value for share, value in zip(shares, posteriors, strict=True)]
        return torch.stack(weighted).sum(0) / torch.stack(shares).sum(0)

    return x0


def test_the_fast_denoiser_is_the_oracle() -> None:
    x = torch.linspace(-4.0, 4.0, 99, dtype=torch.float64)[:, None]
    for schedule, t in ((LINEAR, 0.1), (LINEAR, 0.9), (Flow(), 1.0), (VarianceExploding(), 0.5)):
        torch.testing.assert_close(
            denoiser(schedule)(x, t), MODES.x0(x, *schedule.alpha_sigma(t)), atol=1e-9, rtol=0
        )


def run(
    plan: Plan, schedule: Schedule, count: int = COUNT, seed: int = 0, start_scale: float | None = None
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (start_scale or plan.start_scale) * torch.randn(count, 1, generator=generator)

    def noise(k: int) -> Tensor:
        return torch.randn(count, 1, generator=generator)

    samples = execute(plan, denoiser(schedule), x, noise).double()
    assert samples.isfinite().all()
    return samples


@cache
def distance(solver: str, schedule: Schedule, num_steps: int, eta: float = 0.0) -> float:
    return wasserstein_to(MODES, run(make_plan(solver, schedule, "sample", num_steps, eta=eta), schedule))


def test_the_wasserstein_distance() -> None:
    samples = MODES.draw(COUNT, torch.Generator().manual_seed(0))
    assert wasserstein_to(MODES, samples) < 0.015
    assert wasserstein_to(MODES, samples + 0.1) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("solver", "schedule", "num_steps", "bound"),
    [
        ("ddpm", LINEAR, 1000, 0.015),
        ("ddpm_fixed_large", LINEAR, 200, 0.02),
        ("sde_dpmpp_2m", LINEAR, 50, 0.02),
        ("sde_dpmpp_2m", Flow(), 50, 0.02),
        ("ddpm", Flow(), 200, 0.025),
        ("euler_maruyama", VarianceExploding(), 200, 0.02),
    ],
)
def test_enough_steps_sample_the_data_distribution(
    solver: str, schedule: Schedule, num_steps: int, bound: float
) -> None:
    assert distance(solver, cast(Hashable, schedule), num_steps) < bound


def test_euler_maruyama_is_of_weak_order_1() -> None:
    distances = [distance("euler_maruyama", LINEAR, n) for n in (10, 20, 50, 100)]
    assert distances == sorted(distances, reverse=True)
    assert all(d < bound for d, bound in zip(distances, (0.2, 0.1, 0.03, 0.02), strict=True))
    # later distances are near the floor
    assert math.log2(distances[0] / distances[1]) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("solver", ["ddpm", "ddpm_fixed_large", "sde_dpmpp_2m"])
def test_more_steps_come_closer_to_the_data(solver: str) -> None:
    few, more = distance(solver, LINEAR, 20), distance(solver, LINEAR, 100)
    assert more < few / 2


def test_ddim_with_eta_1_has_the_distribution_of_ddpm() -> None:
    assert (
        distance("ddim", LINEAR, 20, eta=1.0)
        == distance("ddpm", LINEAR, 20)
        == pytest.approx(0.155, abs=0.02)
    )
    assert distance("ddim", LINEAR, 20, eta=0.5) < 0.8 * distance("ddpm", LINEAR, 20)


@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_each_variance_is_exact_for_its_data(num_steps: int) -> None:
    """Beta is exact for standard normal data, the posterior's variance for a point (Ho et al. 2020, 3.2)."""
    times = [tick.t for tick in make_plan("ddpm", LINEAR, "sample", num_steps).ticks]
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        (alpha, sigma), (_, sigma_next) = LINEAR.alpha_sigma(t), LINEAR.alpha_sigma(t_next)
        large, small = (
            make_plan(name, LINEAR, "sample", num_steps).ticks[i] for name in ("ddpm_fixed_large", "ddpm")
        )
        # E[x0 | x] = alpha x, var x = 1
        assert (large.a + large.b[0] * alpha) ** 2 + large.c**2 == pytest.approx(1.0)
        assert (small.a * sigma) ** 2 + small.c**2 == pytest.approx(sigma_next**2)  # x0 = 0, var x = sigma^2


LEVELS = VarianceExploding(0.05, 10.0)


def mode_weights(x: Tensor) -> list[float]:
    """The share of samples at each mode, cut at the valleys between modes."""
    return [
        float(((x > low) & (x <= high)).double().mean())
        for low, high in ((-math.inf, -0.9), (-0.9, 1.4), (1.4, math.inf))
    ]


def is_drawn_from_the_modes(x: Tensor) -> bool:
    return wasserstein_to(MODES, x) < 0.03 and mode_weights(x) == pytest.approx([0.3, 0.5, 0.2], abs=0.02)


def test_annealed_langevin() -> None:
    """Twenty geometric noise levels with a hundred inner steps each."""
    assert is_drawn_from_the_modes(run(make_plan("langevin", LEVELS, "sample", 20), LEVELS, count=20_000))


@pytest.mark.parametrize("start_scale", [10.0, 1.8])
def test_langevin_without_annealing_misses_the_weights_of_modes(start_scale: float) -> None:
    """With all ticks at the lowest noise level, a sample stays in the basin where it starts."""
    lowest = make_plan("langevin", LEVELS, "sample", 20).ticks[-2].t
    plan = make_plan(
        "langevin", LEVELS, "sample", 20, grid=(*(lowest + (19 - i) * 1e-9 for i in range(20)), 0.0)
    )
    assert not is_drawn_from_the_modes(run(plan, LEVELS, count=6000, start_scale=start_scale))
