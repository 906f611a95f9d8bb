"""Timestep spacings: every rule on every schedule gives a grid from 1 to 0."""

import math

import pytest

from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving, lam
from safelight.pipeline.diffusion.spacing import SPACINGS, check_grid, make_grid
from safelight.pipeline.errors import InvalidParams

SCHEDULES = [
    Flow(),
    Flow(3.0),
    *(VariancePreserving(k) for k in ("linear", "scaled_linear", "cosine")),
    VarianceExploding(),
]
SCALED = VariancePreserving("scaled_linear")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [2, 7, 200])
def test_grids_decrease_strictly_from_noise_to_data(schedule: Schedule, spacing: str, num_steps: int) -> None:
    grid = make_grid(schedule, num_steps, spacing)
    assert len(grid) == num_steps + 1
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert check_grid(grid, num_steps) == grid


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_step_runs_from_noise_to_data(spacing: str) -> None:
    assert make_grid(SCALED, 1, spacing) == (1.0, 0.0)


def timesteps(spacing: str, num_steps: int) -> list[float]:
    return [SCALED.timestep(t) for t in make_grid(SCALED, num_steps, spacing)[:-1]]


def test_the_published_times_of_20_steps() -> None:
    # Lin et al. 2023, table 2, counted from 0; `leading` starts at 951 there
    assert timesteps("trailing", 20) == pytest.approx(list(range(999, 0, -50)))
    assert timesteps("leading", 20) == pytest.approx([999, *range(901, 0, -50)])
    assert timesteps("linspace", 20) == pytest.approx([999 - 999 * i / 19 for i in range(20)])
    roots = [1 + i / 9 * (0.001**0.5 - 1) for i in range(10)]
    assert timesteps("quadratic", 10) == pytest.approx([1000 * root**2 - 1 for root in roots])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_longest_grids_decrease_strictly_within_trained_times(spacing: str) -> None:
    grid = make_grid(SCALED, 999, spacing)
    assert all(t > u for t, u in zip(grid, grid[1:], strict=False))
    assert min(SCALED.timestep(t) for t in make_grid(SCALED, 200, spacing)[:-1]) >= -1e-6


def test_shift_moves_evenly_spaced_steps() -> None:
    assert make_grid(Flow(3.0), 4) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))


def test_karras_steps_are_even_in_the_seventh_root_of_sigma() -> None:
    def sigma(t: float) -> float:
        return math.exp(-lam(*SCALED.alpha_sigma(t)))

    low, high, n = sigma(0.001), sigma(1.0), 12
    formula = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    assert [sigma(t) for t in make_grid(SCALED, n, "karras")[:-1]] == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_uniform_lam_is_uniform_where_lam_is_finite(schedule: Schedule) -> None:
    lams = [lam(*schedule.alpha_sigma(t)) for t in make_grid(schedule, 9, "uniform_lam")[1:-1]]
    gaps = [v - u for u, v in zip(lams, lams[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-6)
    assert lams[-1] == pytest.approx(lam(*schedule.alpha_sigma(0.001)))


@pytest.mark.parametrize(
    ("spacing", "num_steps", "param"),
    [
        ("odd", 5, "timestep_spacing"),
        ("trailing", 0, "num_steps"),
        ("karras", -1, "num_steps"),
        ("leading", 1000, "num_steps"),
    ],
)
def test_invalid_arguments_are_named(spacing: str, num_steps: int, param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        make_grid(SCALED, num_steps, spacing)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "times",
    [
        (1.0, 1.0, 0.0),
        (0.5, 1.0, 0.0),
        (1.0, 0.0),
        (1.1, 0.5, 0.0),
        (1.0, 0.5, -0.1),
        (1.0, math.nan, 0.0),
        (math.nan, 0.5, 0.0),
    ],
    ids=str,
)
def test_a_list_of_times_that_is_no_grid_is_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(InvalidParams) as caught:
        check_grid(times, 2)
    assert caught.value.param == "grid"
