"""Plans, the tables of ticks that solvers write, and the grids of points that they write them over.

A sample carries x (its state), y (a saved state) and m_1..m_3 (the ring of past model values, newest first).
A tick evaluates the network at `timestep` on x, reads its output as m_0 = p x + q out (data or noise, as the
solver chooses), and updates

    x' = a x + s y + sum_j b_j m_j + c z
    y' = d x + e y + sum_j f_j m_j

with j = 0..3 and standard normal z, then pushes m_0 into the ring if `push`. All solvers share this form, so
a batch may mix them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from safelight.pipeline.diffusion.prediction import x0_coefficients
from safelight.pipeline.diffusion.schedules import Schedule, is_noise, lam
from safelight.pipeline.errors import InvalidParams

RING = 3  # past model values that a sample keeps
Weights = tuple[float, float, float, float]  # of m_0..m_3
ZERO_WEIGHTS: Weights = (0.0, 0.0, 0.0, 0.0)

COLUMNS = ("p", "q", "a", "s", "b0", "b1", "b2", "b3", "c", "d", "e", "f0", "f1", "f2", "f3", "push")


@dataclass(frozen=True, slots=True)
class Tick:
    """One network evaluation at time `t` and the update after it; letters as in the module's docstring."""

    t: float
    timestep: float
    p: float
    q: float
    a: float
    b: Weights
    s: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    f: Weights = ZERO_WEIGHTS
    push: bool = False

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The coefficients of the update, in the order of `COLUMNS`."""
        return (self.p, self.q, self.a, self.s, *self.b, self.c, self.d, self.e, *self.f, float(self.push))


STATE = ("x", "y", "ring 0", "ring 1", "ring 2")  # what a tick writes
READ = (*STATE, "out", "z")  # what it reads


@dataclass(frozen=True, slots=True)
class Plan:
    """A solver's table of ticks: a sample starts from x = `start_scale` z and executes `ticks` in order.

    `levels` has (alpha, sigma) of x before each tick and after the last one. A sample whose first tick is
    below t = 1 can start from data noised to `levels[0]`.

    `data` has (p, q) of each tick such that x0 = p x + q out is the data that the network predicts there. A
    solver in noise form reads the same output as noise, so its own p and q differ.
    """

    solver: str
    num_steps: int
    ticks: tuple[Tick, ...]
    start_scale: float
    levels: tuple[tuple[float, float], ...]
    data: tuple[tuple[float, float], ...]

    @property
    def nfe(self) -> int:
        """The number of evaluations of the guided network."""
        return len(self.ticks)

    def matrices(self) -> list[list[list[float]]]:
        """Every tick as a matrix (5, 7) that maps `READ` to the new `STATE`.

        m_0 replaces the oldest value of the ring in its slot, so no other value moves. The matrices know
        which slot holds which m_j.
        """
        result, num_pushed = [], 0
        for tick in self.ticks:
            slots = [(num_pushed - j) % RING for j in (1, 2, 3)]  # of m_1, m_2, m_3
            x = _row(tick, tick.a, tick.s, tick.b, tick.c, slots)
            y = _row(tick, tick.d, tick.e, tick.f, 0.0, slots)
            ring = [[float(column == 2 + slot) for column in range(len(READ))] for slot in range(RING)]
            if tick.push:
                ring[num_pushed % RING] = [tick.p, 0.0, 0.0, 0.0, 0.0, tick.q, 0.0]
                num_pushed += 1
            result.append([x, y, *ring])
        return result

    def __str__(self) -> str:
        title = f"{self.solver}: {self.num_steps} steps, {self.nfe} evaluations"
        head = " ".join(f"{column:>9}" for column in ("timestep", *COLUMNS))
        rows = (" ".join(f"{v:9.4g}" for v in (tick.timestep, *tick.coefficients)) for tick in self.ticks)
        return "\n".join([title, head, *rows])


@dataclass(frozen=True, slots=True)
class GridPoint:
    """A time of the grid with its schedule values; `data` is (p, q) such that x0 = p x + q out."""

    t: float
    timestep: float
    alpha: float
    sigma: float
    data: tuple[float, float]

    @property
    def lam(self) -> float:
        return lam(self.alpha, self.sigma)

    @property
    def noise(self) -> tuple[float, float]:
        """(p, q) such that eps = p x + q out; needs sigma > 0."""
        p, q = self.data
        return (1.0 - self.alpha * p) / self.sigma, -self.alpha * q / self.sigma

    @property
    def is_noise(self) -> bool:
        """Whether (almost) no signal is left, so that x and eps do not give the data."""
        return is_noise(self.alpha)

    @property
    def is_data(self) -> bool:
        """Whether no noise is left, so that lam is infinite."""
        return self.sigma == 0.0


@dataclass(frozen=True, slots=True)
class SolverGrid:
    """The points of a grid that a solver is planned over, and points between them.

    `inner_times` may give single-step solvers the inner times of each step, in place of their own choice.
    `lower_order_final` lets multistep solvers end at lower orders, as their authors' code does, which caps
    the order of convergence at 2.
    """

    schedule: Schedule
    prediction: str
    points: tuple[GridPoint, ...]
    lower_order_final: bool = True
    inner_times: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def from_times(
        cls,
        schedule: Schedule,
        prediction: str,
        times: tuple[float, ...],
        lower_order_final: bool = True,
        inner_times: tuple[tuple[float, ...], ...] | None = None,
    ) -> "SolverGrid":
        """The grid over given times.

        Args:
            schedule: the noise schedule.
            prediction: what the network predicts, one of `prediction.PREDICTIONS`.
            times: strictly decreasing in 1 (noise) to 0 (data).
            lower_order_final: whether multistep solvers end at lower orders.
            inner_times: of each step, for single-step solvers; None: the solver's own.
        """
        points = tuple(_point(schedule, prediction, t) for t in times)
        return cls(schedule, prediction, points, lower_order_final, inner_times)

    @property
    def steps(self) -> list[tuple[GridPoint, GridPoint]]:
        """The two ends of every step."""
        return list(pairwise(self.points))

    @property
    def num_noise_points(self) -> int:
        """The number of first points without signal, whose values solvers in noise form do not use."""
        return next((i for i, point in enumerate(self.points) if not point.is_noise), len(self.points))

    def usable_history(self, step: int, count: int) -> list[GridPoint]:
        """At most `count` points before point `step`, newest first, without those where lam is infinite."""
        indices = range(step - 1, step - 1 - count, -1)
        return [self.points[k] for k in indices if k >= 0 and self.points[k].alpha > 0.0]

    def inner_points(self, step: int, fractions: tuple[float, ...]) -> list[GridPoint]:
        """The points at `fractions` of a step's h, or at its `inner_times`."""
        cur, nxt = self.points[step], self.points[step + 1]
        if self.inner_times is None:
            times: Sequence[float] = [
                self.schedule.time_of(cur.lam + r * (nxt.lam - cur.lam)) for r in fractions
            ]
        else:
            times = self.inner_times[step] if step < len(self.inner_times) else ()
            if len(times) != len(fractions) or not all(u > v for u, v in pairwise((cur.t, *times, nxt.t))):
                raise InvalidParams(
                    "inner_times",
                    f"inner_times must give step {step} {len(fractions)} decreasing times within it, "
                    f"got {times}",
                )
        return [_point(self.schedule, self.prediction, t) for t in times]


def _point(schedule: Schedule, prediction: str, t: float) -> GridPoint:
    alpha, sigma = schedule.alpha_sigma(t)
    return GridPoint(t, schedule.timestep(t), alpha, sigma, x0_coefficients(prediction, alpha, sigma))


def _row(tick: Tick, a: float, s: float, b: Weights, c: float, slots: list[int]) -> list[float]:
    """The weights of `READ` in a x + s y + sum_j b_j m_j + c z, with m_0 = p x + q out substituted."""
    row = [a + b[0] * tick.p, s, 0.0, 0.0, 0.0, b[0] * tick.q, c]
    for slot, weight in zip(slots, b[1:], strict=True):
        row[2 + slot] += weight
    return row
