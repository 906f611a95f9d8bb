"""The registry of solvers, and `make_plan`, which writes a solver's plan.

A solver is a planner: once per plan, on the host, in float64, it turns a schedule and a grid into a table of
ticks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from safelight.pipeline.diffusion.prediction import x0_coefficients
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.solvers.langevin import INNER_STEPS, langevin
from safelight.pipeline.diffusion.solvers.multistep import (
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_3m_order3,
    ipndm,
    plms,
    sde_dpmpp_2m,
)
from safelight.pipeline.diffusion.solvers.onestep import (
    ddim,
    ddpm,
    ddpm_fixed_large,
    euler,
    euler_maruyama,
    heun,
)
from safelight.pipeline.diffusion.solvers.singlestep import dpm_2s, dpm_3s, dpmpp_2s
from safelight.pipeline.diffusion.solvers.table import Plan, SolverGrid, Tick
from safelight.pipeline.diffusion.solvers.unipc import unipc
from safelight.pipeline.diffusion.spacing import check_grid, make_grid
from safelight.pipeline.errors import InvalidParams


@dataclass(frozen=True, slots=True)
class Solver:
    """An entry of `SOLVERS`: how a solver plans its ticks, and what users need to choose it."""

    planner: Callable[[SolverGrid], list[Tick]]
    order: int | None  # of convergence; weak order if stochastic, None if it has none
    evaluations: int  # per step
    source: str  # the paper
    use: str  # when to choose it
    deterministic: bool = True
    served: bool = True  # offered to requests; the others need too many ticks
    families: tuple[str, ...] = ("vp", "flow", "ve")  # of schedules that it is defined on


SOLVERS: dict[str, Solver] = {
    "dpmpp_2m": Solver(
        dpmpp_2m, 2, 1, "Lu et al. 2022, arXiv:2211.01095", "the default: guided sampling in 15 to 25 steps"
    ),
    "unipc_2": Solver(
        unipc(2), 3, 1, "Zhao et al. 2023, arXiv:2302.04867", "guided sampling in 8 to 20 steps"
    ),
    "unipc_3": Solver(
        unipc(3), 4, 1, "Zhao et al. 2023, arXiv:2302.04867", "without guidance, or 20 steps and more"
    ),
    "dpmpp_3m": Solver(
        dpmpp_3m, 2, 1, "Lu et al. 2022, arXiv:2211.01095", "as published in code; 15 steps and more"
    ),
    "dpmpp_3m_order3": Solver(
        dpmpp_3m_order3,
        3,
        1,
        "Lu et al. 2022, arXiv:2211.01095, corrected",
        "without guidance, or 20 steps and more",
    ),
    "dpmpp_2s": Solver(
        dpmpp_2s,
        2,
        2,
        "Lu et al. 2022, arXiv:2211.01095",
        "comparison; steady under guidance, at twice the cost",
    ),
    "dpm_2s": Solver(dpm_2s, 2, 2, "Lu et al. 2022, arXiv:2206.00927", "comparison; without guidance"),
    "dpm_3s": Solver(
        dpm_3s, 3, 3, "Lu et al. 2022, arXiv:2206.00927", "accurate trajectories without guidance"
    ),
    "euler": Solver(euler, 1, 1, "Song et al. 2020, arXiv:2010.02502", "the baseline; 28 to 50 steps"),
    "heun": Solver(
        heun,
        2,
        2,
        "Karras et al. 2022, arXiv:2206.00364",
        "second order without history; 20 steps and more",
    ),
    "ipndm": Solver(
        ipndm, 2, 1, "Zhang and Chen 2022, arXiv:2204.13902", "without guidance; on flows from 15 steps on"
    ),
    "plms": Solver(
        plms,
        2,
        1,
        "Liu et al. 2022, arXiv:2202.09778",
        "comparison with old images; one evaluation more at the start",
    ),
    "ddpm": Solver(
        ddpm, 1, 1, "Ho et al. 2020, arXiv:2006.11239", "variety; 50 steps and more", deterministic=False
    ),
    "ddpm_fixed_large": Solver(
        ddpm_fixed_large,
        1,
        1,
        "Ho et al. 2020, arXiv:2006.11239",
        "the paper's sigma^2 = beta; hundreds of steps",
        deterministic=False,
    ),
    "sde_dpmpp_2m": Solver(
        sde_dpmpp_2m,
        2,
        1,
        "Lu et al. 2022, arXiv:2211.01095",
        "variety in 20 to 30 steps",
        deterministic=False,
    ),
    "euler_maruyama": Solver(
        euler_maruyama,
        1,
        1,
        "Song et al. 2021, arXiv:2011.13456",
        "the SDE itself; 100 steps and more",
        deterministic=False,
        families=("vp", "ve"),
    ),
    "langevin": Solver(
        langevin,
        None,
        INNER_STEPS,
        "Song and Ermon 2019, arXiv:1907.05600",
        "study; not served",
        deterministic=False,
        served=False,
        families=("ve",),
    ),
}

ALIASES = {"ddim": "euler", "dpm_1": "euler", "dpmpp_1": "euler", "euler_ancestral": "ddpm"}
SERVED = tuple(name for name, solver in SOLVERS.items() if solver.served)


def make_plan(
    solver: str,
    schedule: Schedule,
    prediction: str,
    num_steps: int,
    *,
    spacing: str = "trailing",
    eta: float = 0.0,
    grid: tuple[float, ...] | None = None,
    lower_order_final: bool = True,
    inner_times: tuple[tuple[float, ...], ...] | None = None,
) -> Plan:
    """The plan of `solver` over `num_steps` steps. Raises `InvalidParams` naming the argument at fault.

    Args:
        solver: a key of `SOLVERS` or `ALIASES`.
        schedule: the noise schedule that the network was trained on.
        prediction: the network's prediction type, a key of `PREDICTIONS`.
        num_steps: solver steps, at least 1.
        spacing: the rule that places the steps, a key of `SPACINGS`.
        eta: DDIM's share of fresh noise, 0 to 1.
        grid: times in place of `spacing`; they may start below t = 1, from an x that is noised to that time.
        lower_order_final: lets multistep solvers end at lower orders, which is safer with few steps.
        inner_times: for single-step solvers, the times of the evaluations within every step.
    """
    planner = _planner(solver, schedule, eta)
    if grid is None:
        times = make_grid(schedule, num_steps, spacing)
    elif spacing == "trailing":
        times = check_grid(grid, num_steps)
    else:
        raise InvalidParams("grid", "a grid says where the steps stand: give it no timestep_spacing")
    ticks = planner(SolverGrid.from_times(schedule, prediction, times, lower_order_final, inner_times))
    name = canonical_name(solver) if eta == 0.0 else "ddim"
    levels = tuple(schedule.alpha_sigma(t) for t in (*(tick.t for tick in ticks), times[-1]))
    data = tuple(x0_coefficients(prediction, *level) for level in levels[:-1])
    return Plan(name, num_steps, tuple(ticks), _start_scale(schedule, times[0]), levels, data)


def canonical_name(solver: str) -> str:
    """The key of `SOLVERS` for `solver`, a key or an alias; raises `InvalidParams` if it is neither."""
    name = ALIASES.get(solver, solver)
    if name not in SOLVERS:
        raise InvalidParams(
            "solver", f"solver {solver!r} is unknown; allowed: {', '.join((*SOLVERS, *ALIASES))}"
        )
    return name


def _planner(solver: str, schedule: Schedule, eta: float) -> Callable[[SolverGrid], list[Tick]]:
    """The planner of `solver`; raises `InvalidParams` if `schedule` or `eta` does not fit it."""
    entry = SOLVERS[canonical_name(solver)]
    if schedule.family not in entry.families:
        families = ", ".join(entry.families)
        raise InvalidParams(
            "solver",
            f"solver {solver!r} is not defined on this model's schedule ({schedule.family}), "
            f"only on {families}",
        )
    if eta == 0.0:
        return entry.planner
    if solver != "ddim":
        raise InvalidParams("eta", f"eta has a meaning for ddim only, not for {solver}")
    if not 0.0 < eta <= 1.0:
        raise InvalidParams("eta", f"eta must be between 0 and 1, got {eta:g}")
    return lambda grid: ddim(grid, eta)


def _start_scale(schedule: Schedule, t: float) -> float:
    """The standard deviation of the noise that a sample starts from.

    sigma, but 1 on variance-preserving schedules: DDPM-style networks start from unit noise although a little
    signal is left at t = 1.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    return math.hypot(alpha, sigma) if schedule.family == "vp" else sigma
