"""Golden values of the schedules and the properties that every grid has."""

import math

import pytest

from pipeline.schedules import Flow, VariancePreserving, lam, trailing


@pytest.mark.parametrize(
    ("kind", "steps", "alpha_bar"),
    [
        ("linear", 250, 0.524085), ("linear", 500, 0.078587), ("linear", 750, 0.00335055), ("linear", 1000, 4.03583e-5),
        ("cosine", 250, 0.847012), ("cosine", 500, 0.49384), ("cosine", 750, 0.144272), ("scaled_linear", 1000, 0.0046601),
    ],
)  # fmt: skip
def test_alpha_bar(kind: str, steps: int, alpha_bar: float) -> None:
    alpha, sigma = VariancePreserving(kind).alpha_sigma(steps / 1000)
    assert alpha**2 == pytest.approx(alpha_bar, rel=2e-5)
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("schedule", [Flow(), Flow(3.0), *(VariancePreserving(k) for k in ("linear", "scaled_linear", "cosine"))], ids=str)
@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_grids_fall_from_noise_to_data(schedule: Flow | VariancePreserving, num_steps: int) -> None:
    grid = schedule.grid(num_steps)
    assert len(grid) == num_steps + 1
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    lams = [lam(*schedule.alpha_sigma(t)) for t in grid]
    assert all(a < b for a, b in zip(lams, lams[1:], strict=False))
    assert schedule.alpha_sigma(0.0) == (1.0, 0.0)


def test_the_first_network_time_of_a_trailing_grid_is_the_last_trained() -> None:
    schedule = VariancePreserving("scaled_linear")
    assert [schedule.timestep(t) for t in schedule.grid(4)[:-1]] == pytest.approx([999, 749, 499, 249])


def test_shift_bends_the_grid_to_noise() -> None:
    assert Flow(3.0).grid(4) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))


def test_ends_of_lam() -> None:
    assert lam(0.0, 1.0) == -math.inf
    assert lam(1.0, 0.0) == math.inf


@pytest.mark.parametrize(
    ("make", "match"), [(lambda: Flow(0.0), "shift"), (lambda: VariancePreserving("odd"), "odd"), (lambda: trailing(0), "num_steps")]
)
def test_nonsense_is_named(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
