"""Golden values of the schedules, their inverses and their rates."""

import math
from collections.abc import Callable

import pytest

from safelight.pipeline.diffusion.schedules import (
    Flow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    is_noise,
    lam,
)
from safelight.pipeline.errors import InvalidParams

SCHEDULES = [
    Flow(),
    Flow(3.0),
    *(VariancePreserving(k) for k in ("linear", "scaled_linear", "cosine")),
    VarianceExploding(),
]


@pytest.mark.parametrize(
    ("kind", "steps", "alpha_bar"),
    [
        ("linear", 250, 0.524085),
        ("linear", 500, 0.078587),
        ("linear", 750, 0.00335055),
        ("linear", 1000, 4.03583e-5),
        ("cosine", 250, 0.847012),
        ("cosine", 500, 0.493844),
        ("cosine", 750, 0.144272),
        ("scaled_linear", 1000, 0.0046601),
    ],
)
def test_alpha_bar(kind: str, steps: int, alpha_bar: float) -> None:
    alpha, sigma = VariancePreserving(kind).alpha_sigma(steps / 1000)
    assert alpha**2 == pytest.approx(alpha_bar, rel=1e-5)
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-12)


def test_clipped_betas_leave_a_little_signal_under_cosine() -> None:
    assert VariancePreserving("cosine").alpha_sigma(1.0)[0] ** 2 == pytest.approx(2.43e-9, rel=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_lam_falls_and_time_0_is_the_data(schedule: Schedule) -> None:
    lams = [lam(*schedule.alpha_sigma(i / 200)) for i in range(201)]
    assert all(u > v for u, v in zip(lams, lams[1:], strict=False))
    assert schedule.alpha_sigma(0.0) == (1.0, 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_of_inverts(schedule: Schedule) -> None:
    for i in range(1, 400):  # training times and times between them
        t = i / 400
        assert schedule.time_of(lam(*schedule.alpha_sigma(t))) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_of_stays_within_time(schedule: Schedule) -> None:
    for value, end in ((-800.0, 1.0), (800.0, 0.0)):  # exp would overflow
        assert schedule.time_of(value) == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# within training steps, since log alpha_bar has kinks at their ends
@pytest.mark.parametrize("t", [0.0505, 0.3205, 0.5005, 0.7205, 0.9505])
def test_rates_are_the_derivatives_of_the_path(schedule: Schedule, t: float) -> None:
    dt = 1e-5
    (a0, s0), (a1, s1) = schedule.alpha_sigma(t - dt), schedule.alpha_sigma(t + dt)
    f, g2 = schedule.rates(t)
    alpha, sigma = schedule.alpha_sigma(t)
    assert f == pytest.approx((a1 - a0) / (2 * dt) / alpha, rel=1e-5, abs=1e-9)
    assert g2 == pytest.approx((s1**2 - s0**2) / (2 * dt) - 2 * f * sigma**2, rel=1e-5)


def test_the_flow_sde_is_not_finite_at_noise() -> None:
    assert Flow().rates(1.0) == (-math.inf, math.inf)


def test_networks_get_the_times_of_training() -> None:
    assert [VariancePreserving().timestep(t) for t in (1.0, 0.5, 0.001)] == pytest.approx([999, 499, 0])
    assert [Flow().timestep(t) for t in (1.0, 0.5, 0.001)] == pytest.approx([1000, 500, 1])


def test_shift_moves_times_to_the_noise() -> None:
    assert [Flow(3.0).warp(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.0, 0.5, 0.75, 0.9, 1.0]
    )
    assert Flow().warp(0.3) == pytest.approx(0.3)


def test_ends_of_lam() -> None:
    assert lam(0.0, 1.0) == -math.inf
    assert lam(1.0, 0.0) == math.inf
    assert is_noise(0.0)
    assert is_noise(VariancePreserving("cosine").alpha_sigma(1.0)[0])
    assert not is_noise(VariancePreserving("linear").alpha_sigma(1.0)[0])  # 0.0063: a little signal is left


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: Flow(0.0), "shift"),
        (lambda: Flow(-1.0), "shift"),
        (lambda: Flow(math.inf), "shift"),
        (lambda: Flow(math.nan), "shift"),
        (lambda: VariancePreserving("odd"), "schedule"),
        (lambda: VarianceExploding(1.0, 0.5), "schedule"),
        (lambda: VarianceExploding(0.0, 1.0), "schedule"),
    ],
)
def test_invalid_arguments_are_named(make: Callable[[], object], param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        make()
    assert caught.value.param == param
