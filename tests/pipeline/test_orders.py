"""Order of convergence, against the closed form of the probability-flow ODE for one Gaussian."""

import math

import pytest
import torch

from pipeline.schedules import Flow, Schedule, VariancePreserving
from pipeline.solvers import SOLVERS, plan
from tests.pipeline.oracle import EIGHT, GAUSSIAN, gaussian_map, walk

# The published 3M lacks a factor 2 and is of order 2; UniPC's corrector adds 1 to the order in its name.
ORDERS = {
    "euler": 1,
    "heun": 2, "dpm_2s": 2, "dpmpp_2s": 2, "dpmpp_2m": 2, "dpmpp_3m": 2, "plms": 2, "ipndm": 2,
    "dpm_3s": 3, "dpmpp_3m_order3": 3, "unipc_2": 3,
    "unipc_3": 4,
}  # fmt: skip
# Even steps of lam. The first is taken where x says nearly nothing of the data: there multistep solvers, whose first step is of
# first order, lose nothing by it. Neither end is an end of time, whose steps are Euler's.
LOW, HIGH = -5.25, 2.0
START = torch.tensor([[1.3]], dtype=torch.float64)


def error(solver: str, schedule: Schedule, num_steps: int, low: float = LOW, high: float = HIGH, lower_order_final: bool = False) -> float:
    grid = tuple(schedule.time_of(low + (high - low) * i / num_steps) for i in range(num_steps + 1))
    table = plan(solver, schedule, "sample", num_steps, grid=grid, lower_order_final=lower_order_final)
    reached = walk(table, lambda x, t: GAUSSIAN.x0(x, *schedule.alpha_sigma(t)), START)
    return float((reached - gaussian_map(GAUSSIAN, schedule, grid[0], grid[-1], START)).abs())


def slope(solver: str, schedule: Schedule, num_steps: int, **options) -> float:
    return math.log2(error(solver, schedule, num_steps // 2, **options) / error(solver, schedule, num_steps, **options))


def test_the_table_covers_every_deterministic_solver_and_is_what_they_claim() -> None:
    assert {name: solver.order for name, solver in SOLVERS.items() if solver.deterministic} == ORDERS


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_order_of_convergence(solver: str, order: int) -> None:
    errors = [error(solver, Flow(), n) for n in (10, 20, 40, 80, 160, 320, 640)]
    assert errors == sorted(errors, reverse=True)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "dpm_2s", "dpm_3s", "unipc_2", "plms"])
def test_order_on_a_variance_preserving_path(solver: str) -> None:
    """Where `heun` steps in sigma / alpha, which on flows it does not, and time has kinks, which lam does not see."""
    assert slope(solver, VariancePreserving("linear"), 320, low=-5.0) == pytest.approx(ORDERS[solver], abs=0.1)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_order_from_pure_noise_to_data(solver: str) -> None:
    """The whole of a flow in even steps of t: the closed form from t = 1, with both ends' special steps."""

    def whole(num_steps: int) -> float:
        reached = walk(plan(solver, Flow(), "flow", num_steps), lambda x, t: GAUSSIAN.out("flow", x, *Flow().alpha_sigma(t)), START)
        return float((reached - gaussian_map(GAUSSIAN, Flow(), 1.0, 0.0, START)).abs())

    assert math.log2(whole(160) / whole(320)) == pytest.approx(ORDERS[solver], abs=0.1)


def test_a_start_at_low_noise_shows_the_first_step() -> None:
    """One step of first order leaves an error of h^2: what a multistep solver of order 3 is left with when it starts mid-way."""
    assert slope("dpmpp_3m_order3", Flow(), 640, low=-2.0) < 2.0
    assert slope("dpm_3s", Flow(), 640, low=-2.0) == pytest.approx(3.0, abs=0.1)  # single-step solvers have no start


@pytest.mark.parametrize("solver", ["unipc_2", "unipc_3"])
def test_lower_orders_at_the_end_cap_the_order_at_2(solver: str) -> None:
    assert slope(solver, Flow(), 320, lower_order_final=True) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("solver", ["plms", "ipndm", "heun", "unipc_2"])
def test_order_on_a_mixture(solver: str) -> None:
    """A path that bends: what is linear in x cannot hide an order there."""
    schedule, x = Flow(), torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def reached(name: str, num_steps: int) -> torch.Tensor:
        grid = tuple(schedule.time_of(-4.0 + 8.0 * i / num_steps) for i in range(num_steps + 1))
        table = plan(name, schedule, "sample", num_steps, grid=grid, lower_order_final=False)
        return walk(table, lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), x)

    exact = reached("dpm_3s", 400)
    coarse, fine = (float((reached(solver, n) - exact).abs().max()) for n in (80, 160))
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.1)
