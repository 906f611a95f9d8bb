"""The table of ticks that every solver becomes, and the path of points that it is planned over.

A sample carries x (its state), y (one saved state) and m_1..m_3 (the ring of past model values, newest first). A tick
evaluates the network at `timestep` on x, reads its output as m_0 = p x + q out (data or noise: the solver's choice), and
moves on by

    x' = a x + s y + sum_j b_j m_j + c z        y' = d x + e y + sum_j f_j m_j        j = 0..3, z standard normal

then pushes m_0 into the ring if `push`. All solvers are rows of this one table, so one batch may hold them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from safelight.pipeline.diffusion.prediction import x0_coefficients
from safelight.pipeline.diffusion.schedules import Schedule, is_noise, lam
from safelight.pipeline.errors import InvalidParams

RING = 3  # past model values that a sample keeps
NONE = (0.0, 0.0, 0.0, 0.0)

Four = tuple[float, float, float, float]
Two = tuple[float, float]

COLUMNS = ("p", "q", "a", "s", "b0", "b1", "b2", "b3", "c", "d", "e", "f0", "f1", "f2", "f3", "push")


@dataclass(frozen=True, slots=True)
class Tick:
    """One network evaluation, at time `t`, and the update that follows it; letters as in the module's docstring."""

    t: float
    timestep: float
    p: float
    q: float
    a: float
    b: Four
    s: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    f: Four = NONE
    push: bool = False

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The update's scalars in the order of `COLUMNS`."""
        return (self.p, self.q, self.a, self.s, *self.b, self.c, self.d, self.e, *self.f, float(self.push))


STATE = ("x", "y", "ring 0", "ring 1", "ring 2")
READ = (*STATE, "out", "z")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a sample has to do: `ticks` in order, from x = `start_scale` z."""

    solver: str
    num_steps: int
    ticks: tuple[Tick, ...]
    start_scale: float

    @property
    def nfe(self) -> int:
        """Evaluations of the guided network."""
        return len(self.ticks)

    def matrices(self) -> list[list[list[float]]]:
        """Every tick as one matrix (5, 7): the new `STATE` as sums over what is `READ`.

        m_0 is written into the slot of the oldest value instead of moving the others along; which slot holds which m_j is
        known here, so the update need not ask.
        """
        found, pushed = [], 0
        for tick in self.ticks:
            slots = [(pushed - j) % RING for j in (1, 2, 3)]  # where m_1, m_2, m_3 are
            x = _row(tick, tick.a, tick.s, tick.b, tick.c, slots)
            y = _row(tick, tick.d, tick.e, tick.f, 0.0, slots)
            ring = [[float(column == 2 + slot) for column in range(len(READ))] for slot in range(RING)]
            if tick.push:
                ring[pushed % RING] = [tick.p, 0.0, 0.0, 0.0, 0.0, tick.q, 0.0]
                pushed += 1
            found.append([x, y, *ring])
        return found

    def __str__(self) -> str:
        head = f"{self.solver}: {self.num_steps} steps, {self.nfe} evaluations\n" + " ".join(
            f"{c:>9}" for c in ("timestep", *COLUMNS)
        )
        return "\n".join(
            [head, *(" ".join(f"{v:9.4g}" for v in (t.timestep, *t.coefficients)) for t in self.ticks)]
        )


@dataclass(frozen=True, slots=True)
class GridPoint:
    """A time of the grid with all that solvers ask of it; `data` is (p, q) such that x0 = p x + q out."""

    t: float
    timestep: float
    alpha: float
    sigma: float
    data: Two

    @property
    def lam(self) -> float:
        return lam(self.alpha, self.sigma)

    @property
    def noise(self) -> Two:
        """(p, q) such that eps = p x + q out; needs sigma > 0."""
        p, q = self.data
        return (1.0 - self.alpha * p) / self.sigma, -self.alpha * q / self.sigma

    @property
    def is_noise(self) -> bool:
        """No signal is left to speak of: lam is -infinite or nearly so, and the data cannot be told from x and eps."""
        return is_noise(self.alpha)

    @property
    def is_data(self) -> bool:
        """No noise is left: lam is infinite."""
        return self.sigma == 0.0


@dataclass(frozen=True, slots=True)
class SolverGrid:
    """What a solver is planned over: the points of a grid, and points between them.

    `inside` may give the inner times of each step to single-step solvers, which else choose them. `lower_order_final` lets
    multistep solvers end at lower orders, as their authors' code does; it caps the order of convergence at 2.
    """

    schedule: Schedule
    prediction: str
    points: tuple[GridPoint, ...]
    lower_order_final: bool = True
    inside: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def over(
        cls,
        schedule: Schedule,
        prediction: str,
        times: tuple[float, ...],
        lower_order_final: bool = True,
        inside: tuple[tuple[float, ...], ...] | None = None,
    ) -> "SolverGrid":
        """The path over a grid of `times`. The network is never asked at the last of them, unless noise is left there."""
        return cls(
            schedule,
            prediction,
            tuple(_point(schedule, prediction, t) for t in times),
            lower_order_final,
            inside,
        )

    @property
    def steps(self) -> list[tuple[GridPoint, GridPoint]]:
        return list(pairwise(self.points))

    @property
    def start(self) -> int:
        """The first point with any signal: what solvers that step on the noise look back to at most."""
        return next((i for i, point in enumerate(self.points) if not point.is_noise), len(self.points))

    def usable_history(self, step: int, count: int) -> list[GridPoint]:
        """At most `count` points before point `step`, newest first, none where lam is infinite."""
        return [
            self.points[k]
            for k in range(step - 1, step - 1 - count, -1)
            if k >= 0 and self.points[k].alpha > 0.0
        ]

    def inner_points(self, step: int, fractions: tuple[float, ...]) -> list[GridPoint]:
        """The points at `fractions` of a step's lam, or those given."""
        now, then = self.points[step], self.points[step + 1]
        if self.inside is None:
            times: Sequence[float] = [
                self.schedule.time_of(now.lam + r * (then.lam - now.lam)) for r in fractions
            ]
        else:
            times = self.inside[step] if step < len(self.inside) else ()
            if len(times) != len(fractions) or not all(u > v for u, v in pairwise((now.t, *times, then.t))):
                raise InvalidParams(
                    "inside",
                    f"inside must give every step {len(fractions)} falling times within it, got {times} for {step}",
                )
        return [_point(self.schedule, self.prediction, t) for t in times]


def _point(schedule: Schedule, prediction: str, t: float) -> GridPoint:
    alpha, sigma = schedule.alpha_sigma(t)
    return GridPoint(t, schedule.timestep(t), alpha, sigma, x0_coefficients(prediction, alpha, sigma))


def _row(tick: Tick, of_x: float, of_y: float, of_m: Four, of_z: float, slots: list[int]) -> list[float]:
    """One line of the update with m_0 = p x + q out put in, in the order of `READ`."""
    row = [of_x + of_m[0] * tick.p, of_y, 0.0, 0.0, 0.0, of_m[0] * tick.q, of_z]
    for slot, weight in zip(slots, of_m[1:], strict=True):
        row[2 + slot] += weight
    return row
