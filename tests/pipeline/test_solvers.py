"""The solver tables: one-step golden values, order of convergence on a Gaussian, diffusers' trajectories."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from pipeline.prediction import PREDICTIONS, x0_coefficients
from pipeline.schedules import Flow, Schedule, VariancePreserving
from pipeline.solvers import SOLVERS, Plan, Step, canonical_name, euler, plan


def walk(table: Plan, network, x: float | np.ndarray, z=lambda k: 0.0):
    """A plan executed one number at a time: what the letters of its docstring say, with nothing vectorised."""
    y, ring = 0.0 * x, [0.0 * x] * 3
    for k, tick in enumerate(table.ticks):
        m = [tick.p * x + tick.q * network(x, tick.timestep), *ring]
        x, y = (
            tick.a * x + tick.s * y + sum(b * v for b, v in zip(tick.b, m, strict=True)) + tick.c * z(k),
            tick.d * x + tick.e * y + sum(f * v for f, v in zip(tick.f, m, strict=True)),
        )
        ring = m[:3] if tick.push else ring
    return x


def test_ddim_golden_step() -> None:
    # x = 1, alpha_bar 0.5 to 0.6, eps 0.4: x0 = 1.014214, next 1.038589
    p, q = x0_coefficients("epsilon", math.sqrt(0.5), math.sqrt(0.5))
    step = Step(0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.6), math.sqrt(0.4), p, q, 1.0, 0.0)
    (tick,) = euler([step])
    x0 = tick.p * 1.0 + tick.q * 0.4
    assert x0 == pytest.approx(1.014214, abs=1e-6)
    assert tick.a * 1.0 + tick.b[0] * x0 == pytest.approx(1.038589, abs=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_recovers_the_data(prediction: str) -> None:
    alpha, sigma, x0, eps = 0.3, 0.7 if prediction == "flow" else math.sqrt(0.91), 1.5, 0.8
    out = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]
    p, q = x0_coefficients(prediction, alpha, sigma)
    assert p * (alpha * x0 + sigma * eps) + q * out == pytest.approx(x0, abs=1e-12)


MEAN, VARIANCE = 0.7, 0.25


def gaussian_network(schedule: Schedule, prediction: str):
    """The exact network for data N(0.7, 0.25)."""

    def evaluate(x, timestep: float):
        t = timestep / 1000 if isinstance(schedule, Flow) else (timestep + 1) / 1000
        alpha, sigma = schedule.alpha_sigma(t)
        total = alpha**2 * VARIANCE + sigma**2
        x0 = MEAN + alpha * VARIANCE / total * (x - alpha * MEAN)
        eps = sigma / total * (x - alpha * MEAN)
        return eps if prediction == "epsilon" else eps - x0

    return evaluate


def error(solver: str, schedule: Schedule, prediction: str, num_steps: int) -> float:
    """Against the closed form of the probability-flow ODE from lam = -2 to lam = 2, clear of the ends' special steps."""
    times = sorted((_time_at(schedule, lam) for lam in np.linspace(-2, 2, num_steps + 1)), reverse=True)
    table = plan(solver, schedule, prediction, num_steps, grid=tuple(times))
    (a_t, s_t), (a_s, s_s) = schedule.alpha_sigma(times[0]), schedule.alpha_sigma(times[-1])
    exact = a_s * MEAN + math.sqrt((a_s**2 * VARIANCE + s_s**2) / (a_t**2 * VARIANCE + s_t**2)) * (1.3 - a_t * MEAN)
    return abs(walk(table, gaussian_network(schedule, prediction), 1.3) - exact)


def _time_at(schedule: Schedule, wanted: float) -> float:
    low, high = 1e-9, 1.0 - 1e-9
    for _ in range(200):
        middle = 0.5 * (low + high)
        alpha, sigma = schedule.alpha_sigma(middle)
        low, high = (middle, high) if math.log(alpha / sigma) > wanted else (low, middle)
    return low


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    coarse, fine = (error(solver, Flow(), "flow", n) for n in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_ddpm_draws_from_the_data() -> None:
    schedule, count = VariancePreserving("linear"), 4000
    rng = np.random.default_rng(0)
    table = plan("ddpm", schedule, "epsilon", 200)
    drawn = walk(table, gaussian_network(schedule, "epsilon"), rng.standard_normal(count), lambda k: rng.standard_normal(count))
    assert table.ticks[-1].c == 0.0
    assert drawn.mean() == pytest.approx(MEAN, abs=0.03)
    assert drawn.var() == pytest.approx(VARIANCE, abs=0.03)


def dummy(x: torch.Tensor, timestep: float) -> torch.Tensor:
    return x * timestep / (timestep + 1000) + 0.1 * torch.sin(3 * x)


@pytest.mark.parametrize("num_steps", [5, 10, 20, 50])
def test_equals_diffusers_ddim(num_steps: int) -> None:
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing", clip_sample=False
    )
    theirs.set_timesteps(num_steps)
    x = start = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in theirs.timesteps:
        x = theirs.step(dummy(x, float(t)), t, x, eta=0.0).prev_sample
    grid = (*((float(t) + 1) / 1000 for t in theirs.timesteps), 0.0)
    ours = walk(plan("ddim", VariancePreserving("scaled_linear"), "epsilon", num_steps, grid=grid), dummy, start)
    torch.testing.assert_close(ours, x, atol=1e-4 * float(x.abs().max()), rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers hands numpy a tensor
@pytest.mark.parametrize("num_steps", [5, 10, 20, 50])
def test_equals_diffusers_dpmpp_2m_on_flow(num_steps: int) -> None:
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2, final_sigmas_type="zero"
    )
    theirs.set_timesteps(num_steps)
    x = start = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = tuple(float(s) for s in theirs.sigmas)
    for t, sigma in zip(theirs.timesteps, grid, strict=False):
        x = theirs.step(dummy(x, 1000 * sigma), t, x).prev_sample  # the network sees our exact time, not theirs cut to an integer
    ours = walk(plan("dpmpp_2m", Flow(), "flow", num_steps, grid=grid), dummy, start)
    torch.testing.assert_close(ours, x, atol=1e-4 * float(x.abs().max()), rtol=0)


def test_plans_say_what_they_cost() -> None:
    schedule = Flow()
    for solver in SOLVERS:
        table = plan(solver, schedule, "flow", 12)
        assert table.num_steps == 12
        assert table.nfe >= 12
        assert solver in str(table)
        assert all(math.isfinite(v) for tick in table.ticks for v in tick.coefficients)
    assert plan("heun", schedule, "flow", 12).nfe == 2 * 12 - 2
    assert canonical_name("ddim") == "euler"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("magic", Flow(), "flow", 5), "magic.*allowed"),
        (("euler", Flow(), "odd", 5), "odd.*allowed"),
        (("euler", Flow(), "flow", 2, (1.0, 1.0, 0.0)), "decreasing"),
        (("euler", Flow(), "flow", 2, (1.0, 0.0)), "decreasing"),
    ],
)  # fmt: skip
def test_nonsense_is_named(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan(*arguments)
