"""Orders of convergence, against the closed form of the probability-flow ODE for one Gaussian."""

import math
from functools import cache
from typing import Any

import pytest
import torch

from safelight.pipeline.diffusion.reference.adaptive import rk45
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.diffusion.solvers import SOLVERS, Plan, make_plan
from tests.pipeline.oracle import EIGHT, GAUSSIAN, execute, gaussian_map

# The published 3M lacks a factor 2 and is of order 2. UniPC's corrector adds 1 to the order in its name.
ORDERS = {
    "euler": 1,
    "heun": 2,
    "dpm_2s": 2,
    "dpmpp_2s": 2,
    "dpmpp_2m": 2,
    "dpmpp_3m": 2,
    "plms": 2,
    "ipndm": 2,
    "dpm_3s": 3,
    "dpmpp_3m_order3": 3,
    "unipc_2": 3,
    "unipc_3": 4,
}
# Equal steps of lam. The first is taken where x says almost nothing about the data, so multistep solvers,
# whose first step is of first order, lose nothing by it. Neither end is an end of time, where steps are
# Euler's.
LOW, HIGH = -5.25, 2.0
START = torch.tensor([[1.3]], dtype=torch.float64)


def error(
    solver: str,
    schedule: Schedule,
    num_steps: int,
    low: float = LOW,
    high: float = HIGH,
    lower_order_final: bool = False,
) -> float:
    grid = tuple(schedule.time_of(low + (high - low) * i / num_steps) for i in range(num_steps + 1))
    plan = make_plan(solver, schedule, "sample", num_steps, grid=grid, lower_order_final=lower_order_final)
    end = execute(plan, lambda x, t: GAUSSIAN.x0(x, *schedule.alpha_sigma(t)), START)
    return float((end - gaussian_map(GAUSSIAN, schedule, grid[0], grid[-1], START)).abs())


def slope(solver: str, schedule: Schedule, num_steps: int, **options: Any) -> float:
    return math.log2(
        error(solver, schedule, num_steps // 2, **options) / error(solver, schedule, num_steps, **options)
    )


def test_every_deterministic_solver_claims_its_order() -> None:
    assert {name: solver.order for name, solver in SOLVERS.items() if solver.deterministic} == ORDERS


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_order_of_convergence(solver: str, order: int) -> None:
    errors = [error(solver, Flow(), n) for n in (10, 20, 40, 80, 160, 320, 640)]
    assert errors == sorted(errors, reverse=True)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "dpm_2s", "dpm_3s", "unipc_2", "plms"])
def test_order_on_a_variance_preserving_path(solver: str) -> None:
    """There `heun` steps in sigma / alpha, unlike on flows, and lam has kinks as a function of time."""
    assert slope(solver, VariancePreserving("linear"), 320, low=-5.0) == pytest.approx(
        ORDERS[solver], abs=0.1
    )


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_order_from_pure_noise_to_data(solver: str) -> None:
    """A whole flow in equal steps of t, with the special steps at both ends."""

    def error_from_noise(num_steps: int) -> float:
        end = execute(
            make_plan(solver, Flow(), "flow", num_steps),
            lambda x, t: GAUSSIAN.out("flow", x, *Flow().alpha_sigma(t)),
            START,
        )
        return float((end - gaussian_map(GAUSSIAN, Flow(), 1.0, 0.0, START)).abs())

    assert math.log2(error_from_noise(160) / error_from_noise(320)) == pytest.approx(ORDERS[solver], abs=0.1)


def test_a_start_at_low_noise_shows_the_first_step() -> None:
    """One step of first order leaves an error of h^2 in a multistep solver of order 3 that starts midway."""
    assert slope("dpmpp_3m_order3", Flow(), 640, low=-2.0) < 2.0
    # single-step solvers have no special first step
    assert slope("dpm_3s", Flow(), 640, low=-2.0) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("solver", ["unipc_2", "unipc_3"])
def test_lower_orders_at_the_end_cap_the_order_at_2(solver: str) -> None:
    assert slope(solver, Flow(), 320, lower_order_final=True) == pytest.approx(2.0, abs=0.1)


MIXED_START = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MIXED_LOW, MIXED_HIGH = -4.0, 4.0


def on_a_mixture(x: torch.Tensor, t: float) -> torch.Tensor:
    return EIGHT.x0(x, *Flow().alpha_sigma(t))


@cache
def mixed_end() -> torch.Tensor:
    """The exact end, by adaptive Runge-Kutta, which shares nothing with the plans."""
    return rk45(
        on_a_mixture,
        Flow(),
        Flow().time_of(MIXED_LOW),
        Flow().time_of(MIXED_HIGH),
        MIXED_START,
        rtol=1e-11,
        atol=1e-12,
    )[0]


@pytest.mark.parametrize("solver", ORDERS)
def test_order_on_a_mixture(solver: str) -> None:
    """A curved path, where terms linear in x cannot hide an order; two have not converged at 320 steps."""
    errors = []
    for num_steps in (160, 320):
        grid = tuple(
            Flow().time_of(MIXED_LOW + (MIXED_HIGH - MIXED_LOW) * i / num_steps) for i in range(num_steps + 1)
        )
        plan = make_plan(solver, Flow(), "sample", num_steps, grid=grid, lower_order_final=False)
        errors.append(float((execute(plan, on_a_mixture, MIXED_START) - mixed_end()).abs().max()))
    tolerance = 0.4 if solver in ("unipc_3", "dpmpp_3m_order3") else 0.1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=tolerance)


@pytest.mark.parametrize(
    ("solver", "schedule", "order"),
    [
        ("ddpm", VariancePreserving(), 1),
        ("ddpm", Flow(), 1),
        ("ddpm_fixed_large", VariancePreserving(), 1),
        ("ddpm_fixed_large", Flow(), 1),
        ("sde_dpmpp_2m", VariancePreserving(), 2),
        ("sde_dpmpp_2m", Flow(), 2),
        ("euler_maruyama", VariancePreserving(), 1),
    ],
)
def test_weak_order(solver: str, schedule: Schedule, order: int) -> None:
    """Stochastic solvers on one Gaussian, where updates are linear, so covariances are propagated exactly."""
    assert SOLVERS[solver].order == order
    errors = []
    for num_steps in (160, 320):
        grid = tuple(schedule.time_of(-4.0 + 6.0 * i / num_steps) for i in range(num_steps + 1))
        errors.append(
            variance_error(make_plan(solver, schedule, "sample", num_steps, grid=grid), schedule, grid)
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def variance_error(plan: Plan, schedule: Schedule, grid: tuple[float, ...]) -> float:
    """The error of the final variance of x, for data of variance c noised to the last time."""
    c = 0.25
    state = torch.zeros(5, 5, dtype=torch.float64)  # the covariance of `STATE`
    state[0, 0] = _noised(c, schedule, grid[0])
    for tick, matrix in zip(plan.ticks, torch.tensor(plan.matrices(), dtype=torch.float64), strict=True):
        alpha, _ = schedule.alpha_sigma(tick.t)
        linear = matrix[:, :5].clone()
        # the network's output is the posterior mean, for data of mean 0
        linear[:, 0] += matrix[:, 5] * alpha * c / _noised(c, schedule, tick.t)
        state = linear @ state @ linear.T + torch.outer(matrix[:, 6], matrix[:, 6])
    return abs(float(state[0, 0]) - _noised(c, schedule, grid[-1]))


def _noised(c: float, schedule: Schedule, t: float) -> float:
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha**2 * c + sigma**2
