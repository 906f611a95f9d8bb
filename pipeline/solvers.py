"""Solvers as planners: a schedule and a grid become, once, on the host, in float64, a table of ticks.

A sample carries x (its state), y (one saved state) and m_1..m_3 (the ring of past model values, newest first). A tick
evaluates the network at `timestep` on x, reads its output as data, m_0 = p x + q out, and moves on by

    x' = a x + s y + sum_j b_j m_j + c z        y' = d x + e y + sum_j f_j m_j        j = 0..3, z standard normal

then pushes m_0 into the ring if `push`. All solvers are rows of this one table, so one batch may hold them all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.prediction import x0_coefficients
from pipeline.schedules import Schedule, lam

RING = 3  # past model values that a sample keeps

Four = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Tick:
    """One network evaluation and the update that follows it; letters as in the module's docstring."""

    timestep: float
    p: float
    q: float
    a: float
    b: Four
    s: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    f: Four = (0.0, 0.0, 0.0, 0.0)
    push: bool = False

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The update's scalars in the order of `COLUMNS`."""
        return (self.p, self.q, self.a, self.s, *self.b, self.c, self.d, self.e, *self.f, float(self.push))


COLUMNS = ("p", "q", "a", "s", "b0", "b1", "b2", "b3", "c", "d", "e", "f0", "f1", "f2", "f3", "push")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a sample has to do: `ticks` in order, from x = `start_scale` z."""

    solver: str
    num_steps: int
    ticks: tuple[Tick, ...]
    start_scale: float

    @property
    def nfe(self) -> int:
        return len(self.ticks)

    def __str__(self) -> str:
        head = f"{self.solver}: {self.num_steps} steps, {self.nfe} evaluations\n" + " ".join(f"{c:>9}" for c in ("timestep", *COLUMNS))
        return "\n".join([head, *(" ".join(f"{v:9.4g}" for v in (t.timestep, *t.coefficients)) for t in self.ticks)])


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the grid, from t to the next, less noisy time: what every solver is written in."""

    timestep: float
    timestep_next: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float
    p: float
    q: float
    p_next: float
    q_next: float

    @property
    def h(self) -> float:
        """lam_next - lam; infinite when either end is pure noise or pure data."""
        return lam(self.alpha_next, self.sigma_next) - lam(self.alpha, self.sigma)


Planner = Callable[[list[Step]], list[Tick]]


def plan(solver: str, schedule: Schedule, prediction: str, num_steps: int, grid: tuple[float, ...] | None = None) -> Plan:
    """The ticks of `solver` over `grid` (num_steps + 1 strictly decreasing times; default: the schedule's own).

    Raises `ValueError` naming what is wrong with the solver, the prediction type or the grid.
    """
    name = canonical_name(solver)
    times = schedule.grid(num_steps) if grid is None else grid
    if len(times) != num_steps + 1 or any(t <= u for t, u in zip(times, times[1:], strict=False)):
        raise ValueError(f"grid must be {num_steps + 1} strictly decreasing times, got {times}")
    steps = [_step(schedule, prediction, t, u) for t, u in zip(times, times[1:], strict=False)]
    start_alpha, start_sigma = schedule.alpha_sigma(times[0])
    # DDPM-style networks are started from unit noise although a little signal is left at t = 1.
    start_scale = math.hypot(start_alpha, start_sigma) if start_alpha < 0.1 else start_sigma
    return Plan(name, num_steps, tuple(SOLVERS[name](steps)), start_scale)


def canonical_name(solver: str) -> str:
    """The solver behind a name or an alias; `ValueError` lists what there is."""
    name = ALIASES.get(solver, solver)
    if name not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; allowed: {', '.join((*SOLVERS, *ALIASES))}")
    return name


def euler(steps: list[Step]) -> list[Tick]:
    """Euler in sigma / alpha, which is DDIM with eta = 0 (Song et al. 2020, arXiv:2010.02502, eq. 12)."""
    return [_euler_tick(step) for step in steps]


def heun(steps: list[Step]) -> list[Tick]:
    """Heun in sigma / alpha (Karras et al. 2022, arXiv:2206.00364, algorithm 1, no churn): two ticks a step.

    A step that starts at pure noise or ends at pure data, where sigma / alpha or its slope is infinite, is an Euler step.
    """
    ticks = []
    for step in steps:
        if step.alpha == 0.0 or step.sigma_next == 0.0:
            ticks.append(_euler_tick(step))
            continue
        ve, ve_next = step.sigma / step.alpha, step.sigma_next / step.alpha_next
        h = ve_next - ve
        predictor = _euler_tick(step)
        ticks.append(Tick(predictor.timestep, predictor.p, predictor.q, predictor.a, predictor.b, d=1.0, push=True))
        ticks.append(
            Tick(
                step.timestep_next,
                step.p_next,
                step.q_next,
                a=h / (2 * ve_next),
                s=step.alpha_next / step.alpha * (1 + h / (2 * ve)),
                b=(-step.alpha_next * h / (2 * ve_next), -step.alpha_next * h / (2 * ve), 0.0, 0.0),
            )
        )
    return ticks


def dpmpp_2m(steps: list[Step]) -> list[Tick]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    The first step, the step after an infinite lam, and the last step to sigma = 0 are of first order.
    """
    ticks, previous = [], None
    for step in steps:
        first_order = _euler_tick(step)
        weight = 0.0
        if previous is not None and math.isfinite(previous.h) and math.isfinite(step.h):
            weight = step.h / (2 * previous.h)  # 1 / (2 r) with r = h_previous / h
        b0 = first_order.b[0]
        ticks.append(Tick(step.timestep, step.p, step.q, first_order.a, (b0 * (1 + weight), -b0 * weight, 0.0, 0.0), push=True))
        previous = step
    return ticks


def ddpm(steps: list[Step]) -> list[Tick]:
    """Ancestral sampling from the posterior q(x_next | x, x0) (Ho et al. 2020, arXiv:2006.11239, eq. 7).

    Written for any alpha, sigma and any stride (Kingma et al. 2021, arXiv:2107.00630, eq. 32). No noise at the last step.
    """
    ticks = []
    for step in steps:
        alpha_ratio = step.alpha / step.alpha_next
        variance_between = step.sigma**2 - (alpha_ratio * step.sigma_next) ** 2
        a = alpha_ratio * step.sigma_next**2 / step.sigma**2
        b0 = step.alpha_next * variance_between / step.sigma**2
        c = math.sqrt(variance_between) * step.sigma_next / step.sigma
        ticks.append(Tick(step.timestep, step.p, step.q, a, (b0, 0.0, 0.0, 0.0), c=c))
    return ticks


SOLVERS: dict[str, Planner] = {"dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun, "ddpm": ddpm}
ALIASES = {"ddim": "euler"}


def _euler_tick(step: Step) -> Tick:
    a = step.sigma_next / step.sigma
    return Tick(step.timestep, step.p, step.q, a, (step.alpha_next - step.alpha * a, 0.0, 0.0, 0.0))


def _step(schedule: Schedule, prediction: str, t: float, t_next: float) -> Step:
    (alpha, sigma), (alpha_next, sigma_next) = schedule.alpha_sigma(t), schedule.alpha_sigma(t_next)
    p, q = x0_coefficients(prediction, alpha, sigma)
    p_next, q_next = x0_coefficients(prediction, alpha_next, sigma_next)
    return Step(schedule.timestep(t), schedule.timestep(t_next), alpha, sigma, alpha_next, sigma_next, p, q, p_next, q_next)
