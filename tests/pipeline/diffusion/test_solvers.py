"""Solver plans: golden values of one step, comparison with the reference, cost, and invalid arguments."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.reference import UPDATES, Problem, onestep
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import (
    ALIASES,
    COLUMNS,
    SERVED,
    SOLVERS,
    GridPoint,
    SolverGrid,
    canonical_name,
    make_plan,
)
from safelight.pipeline.diffusion.solvers.langevin import INNER_STEPS
from safelight.pipeline.diffusion.solvers.onestep import ddpm, ddpm_fixed_large, euler
from safelight.pipeline.diffusion.solvers.table import Tick
from safelight.pipeline.diffusion.spacing import SPACINGS, make_grid
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import EIGHT, execute

LINEAR = VariancePreserving("linear")
SCHEDULES = [
    (Flow(), "flow"),
    (Flow(3.0), "v_prediction"),
    (LINEAR, "epsilon"),
    (VariancePreserving("scaled_linear"), "v_prediction"),
    (VariancePreserving("cosine"), "sample"),
    (VarianceExploding(), "score"),
]


def noise(k: int) -> Tensor:
    return torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(k))


def one_step(
    planner: Callable[[SolverGrid], list[Tick]], before: float, after: float, beta_z: float
) -> float:
    """A golden step from alpha_bar `before` to `after`: x = 0.8 with noise `beta_z`, or x = 1 without."""
    points = [
        GridPoint(
            0.0, 0.0, math.sqrt(a), math.sqrt(1 - a), (1 / math.sqrt(a), -math.sqrt(1 - a) / math.sqrt(a))
        )
        for a in (before, after)
    ]
    (tick,) = planner(SolverGrid(LINEAR, "epsilon", tuple(points)))
    x, eps = (0.8, 0.6) if beta_z else (1.0, 0.4)
    return float(tick.a * x + tick.b[0] * (tick.p * x + tick.q * eps) + tick.c * beta_z)


def test_golden_steps() -> None:
    assert one_step(euler, 0.5, 0.6, 0.0) == pytest.approx(1.038589, abs=5e-7)
    assert one_step(ddpm_fixed_large, 0.5, 0.5 / 0.99, 0.3) == pytest.approx(0.825502, abs=5e-7)
    assert one_step(ddpm, 0.5, 0.5 / 0.99, 0.3) == pytest.approx(0.825350, abs=5e-7)
    p, q = (1 / math.sqrt(0.5), -1.0)
    assert p * 1.0 + q * 0.4 == pytest.approx(1.014214, abs=5e-7)


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_plan_equals_its_reference(solver: str, schedule: Schedule, prediction: str) -> None:
    if schedule.family not in SOLVERS[solver].families:
        with pytest.raises(InvalidParams, match="not defined"):
            make_plan(solver, schedule, prediction, 5)
        return
    cases = [
        (1, "trailing"),
        (2, "trailing"),
        (2, "karras"),
        (5, "leading"),
        (5, "uniform_lam"),
        (20, "trailing"),
        (20, "karras"),
    ]
    if solver == "langevin":
        cases = cases[:2]  # a step takes a hundred equal ticks
    if solver == "plms":
        cases = cases[3:]  # fewer steps are refused, see below
    for num_steps, spacing in cases:
        plan = make_plan(solver, schedule, prediction, num_steps, spacing=spacing)
        assert all(
            math.isfinite(v) for tick in plan.ticks for v in (tick.t, tick.timestep, *tick.coefficients)
        )
        assert plan.ticks[-1].c == 0.0  # no noise on the image
        x = plan.start_scale * noise(1000)
        ours = execute(plan, lambda x, t: EIGHT.out(prediction, x, *schedule.alpha_sigma(t)), x, noise)
        problem = Problem(
            lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)),
            schedule,
            make_grid(schedule, num_steps, spacing),
            noise,
        )
        torch.testing.assert_close(ours, UPDATES[solver](problem, x), atol=1e-8, rtol=0)


@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if s.deterministic])
@pytest.mark.parametrize("num_steps", [5, 20])
def test_plans_without_lower_order_final_equal_their_reference(solver: str, num_steps: int) -> None:
    """On a grid that stops where noise is left."""
    schedule, grid = Flow(), tuple(1.0 - 0.9 * i / num_steps for i in range(num_steps + 1))
    plan = make_plan(solver, schedule, "flow", num_steps, grid=grid, lower_order_final=False)
    ours = execute(plan, lambda x, t: EIGHT.out("flow", x, *schedule.alpha_sigma(t)), noise(0))
    problem = Problem(
        lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), schedule, grid, noise, lower_order_final=False
    )
    torch.testing.assert_close(ours, UPDATES[solver](problem, noise(0)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", [Flow(3.0), LINEAR, VarianceExploding()], ids=str)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_equals_its_reference(schedule: Schedule, eta: float) -> None:
    plan = make_plan("ddim", schedule, "sample", 8, eta=eta)
    x = plan.start_scale * noise(1000)
    problem = Problem(
        lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), schedule, make_grid(schedule, 8), noise
    )
    ours = execute(plan, lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), x, noise)
    torch.testing.assert_close(ours, onestep.ddim(problem, x, eta), atol=1e-9, rtol=0)


def test_ddim_runs_from_euler_to_ddpm() -> None:
    for schedule in (Flow(), LINEAR, VarianceExploding()):
        euler_ticks, ddpm_ticks = (make_plan(name, schedule, "sample", 7).ticks for name in ("euler", "ddpm"))
        assert make_plan("ddim", schedule, "sample", 7).ticks == euler_ticks
        assert make_plan("ddim", schedule, "sample", 7, eta=1.0).ticks == ddpm_ticks
        assert make_plan("ddim", schedule, "sample", 7, eta=0.5).ticks != ddpm_ticks


@pytest.mark.parametrize(
    "schedule", [LINEAR, VariancePreserving("scaled_linear"), VarianceExploding()], ids=str
)
def test_the_alias_euler_ancestral_equals_k_diffusion(schedule: Schedule) -> None:
    plan = make_plan("euler_ancestral", schedule, "sample", 9)
    x = plan.start_scale * noise(1000)
    problem = Problem(
        lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), schedule, make_grid(schedule, 9), noise
    )
    ours = execute(plan, lambda x, t: EIGHT.x0(x, *schedule.alpha_sigma(t)), x, noise)
    torch.testing.assert_close(ours, onestep.euler_ancestral(problem, x), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("alias", "solver"),
    [("ddim", "euler"), ("dpm_1", "euler"), ("dpmpp_1", "euler"), ("euler_ancestral", "ddpm")],
)
def test_an_alias_plans_as_its_solver(alias: str, solver: str) -> None:
    assert make_plan(alias, Flow(), "flow", 5) == make_plan(solver, Flow(), "flow", 5)


def test_aliases_are_not_solvers() -> None:
    for alias, name in ALIASES.items():
        assert alias not in SOLVERS
        assert canonical_name(alias) == name
        assert make_plan(alias, Flow(), "flow", 6) == make_plan(name, Flow(), "flow", 6)
    assert "langevin" not in SERVED
    assert "dpmpp_2m" in SERVED


N = 12
EVALUATIONS = {  # on flow (no signal at t = 1) and on VP (a little signal)
    "dpmpp_2m": (N, N),
    "unipc_2": (N, N),
    "unipc_3": (N, N),
    "dpmpp_3m": (N, N),
    "dpmpp_3m_order3": (N, N),
    "dpmpp_2s": (2 * N - 2, 2 * N - 1),
    "dpm_2s": (2 * N - 2, 2 * N - 1),
    "dpm_3s": (3 * N - 4, 3 * N - 2),
    "euler": (N, N),
    "heun": (2 * N - 1, 2 * N - 1),
    "ipndm": (N, N),
    "plms": (N + 1, N + 1),
    "ddpm": (N, N),
    "ddpm_fixed_large": (N, N),
    "sde_dpmpp_2m": (N, N),
    "euler_maruyama": (None, N),
    "langevin": (None, None),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_plans_count_their_evaluations(solver: str) -> None:
    schedules: tuple[Schedule, ...] = (Flow(), LINEAR)
    for schedule, nfe in zip(schedules, EVALUATIONS[solver], strict=True):
        if nfe is None:
            continue
        times: list[float] = []

        def network(x: Tensor, t: float, times: list[float] = times) -> Tensor:
            times.append(t)
            return x

        plan = make_plan(solver, schedule, "v_prediction", N)
        execute(plan, network, noise(0), noise)
        assert (plan.num_steps, plan.nfe, len(times)) == (N, nfe, nfe)
        assert nfe <= N * SOLVERS[solver].evaluations + (solver == "plms")


def test_langevin_takes_its_inner_steps_and_one_more() -> None:
    assert make_plan("langevin", VarianceExploding(), "score", 3).nfe == 3 * INNER_STEPS + 1


def test_a_plan_prints_as_a_table() -> None:
    plan = make_plan("heun", Flow(), "flow", 3)
    title, head, *rows = str(plan).splitlines()
    assert title == "heun: 3 steps, 5 evaluations"
    assert head.split() == ["timestep", *COLUMNS]
    assert len(rows) == plan.nfe
    for row, tick in zip(rows, plan.ticks, strict=True):
        assert [float(v) for v in row.split()] == pytest.approx(
            [tick.timestep, *tick.coefficients], rel=1e-3, abs=1e-12
        )


def test_samples_start_from_the_noise_of_their_schedule() -> None:
    assert make_plan("euler", Flow(), "flow", 2).start_scale == 1.0
    # unit although a little signal is left
    assert make_plan("euler", LINEAR, "epsilon", 2).start_scale == pytest.approx(1.0)
    assert make_plan("euler", VarianceExploding(), "score", 2).start_scale == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("arguments", "options", "param"),
    [
        (("magic", Flow(), "flow", 5), {}, "solver"),
        (("langevin", Flow(), "flow", 5), {}, "solver"),
        (("langevin", LINEAR, "epsilon", 5), {}, "solver"),
        (("euler_maruyama", Flow(), "flow", 5), {}, "solver"),
        (("euler", Flow(), "odd", 5), {}, "prediction"),
        (("euler", Flow(), "epsilon", 5), {}, "prediction"),  # pure noise says nothing about the data
        (("euler", Flow(), "flow", 0), {}, "num_steps"),
        (("plms", LINEAR, "epsilon", 1), {}, "num_steps"),
        # the first step is Euler's, so plms starts at the second
        (("plms", Flow(), "flow", 2), {}, "num_steps"),
        (("euler", LINEAR, "epsilon", 5), {"spacing": "odd"}, "timestep_spacing"),
        (("euler", LINEAR, "epsilon", 5), {"eta": 0.5}, "eta"),
        (("ddpm", LINEAR, "epsilon", 5), {"eta": 1.0}, "eta"),
        (("dpmpp_2m", LINEAR, "epsilon", 5), {"eta": -0.5}, "eta"),
        (("ddim", LINEAR, "epsilon", 5), {"eta": 1.5}, "eta"),
        (("ddim", LINEAR, "epsilon", 5), {"eta": -0.1}, "eta"),
        (("ddim", LINEAR, "epsilon", 5), {"eta": math.nan}, "eta"),
        (("euler", Flow(), "flow", 2), {"grid": (1.0, 1.0, 0.0)}, "grid"),
        (("euler", Flow(), "flow", 2), {"grid": (1.0, 0.0)}, "grid"),
        (("euler", Flow(), "flow", 2), {"grid": (0.2, 0.5, 0.0)}, "grid"),
        (("euler", Flow(), "flow", 2), {"grid": (1.0, 0.5, 0.0), "spacing": "karras"}, "grid"),
        (("dpmpp_2s", LINEAR, "epsilon", 2), {"inner_times": ((), ())}, "inner_times"),
        (("dpmpp_2s", LINEAR, "epsilon", 2), {"inner_times": ((0.1,), (0.2,))}, "inner_times"),
    ],
)
def test_invalid_arguments_are_named(
    arguments: tuple[str, Schedule, str, int], options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        make_plan(*arguments, **options)
    assert caught.value.param == param


def test_a_stochastic_plan_needs_noise() -> None:
    plan = make_plan("ddpm", Flow(), "flow", 3)
    with pytest.raises(InvalidParams, match="ddpm adds noise"):
        execute(plan, lambda x, t: x, torch.ones(1))


def test_every_spacing_can_be_planned() -> None:
    for spacing in SPACINGS:
        assert make_plan("dpmpp_2m", Flow(3.0), "flow", 6, spacing=spacing).ticks[0].timestep == 1000.0
