"""Who runs in a tick, of all who are here: pure rules, which the forecast follows as well."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.workload import SampleWorkload


class Schedulable(Protocol):
    """A sample and how far it is."""

    @property
    def workload(self) -> SampleWorkload: ...

    @property
    def step_index(self) -> int: ...


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tick: rows of the network, and image tokens of all of them, which bound the memory that a tick takes."""

    max_rows: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided sample has two rows")
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be positive")


def select_batch(standings: Iterable[S], now: float, limits: Limits, curve: CostCurve) -> list[S]:
    """The samples to move on in the next tick.

    They are taken as they are due (`SampleWorkload.due`), while they fit: into the limits, and into the work beyond which a larger tick
    gets less done in a second, when whoever comes later only makes the others late. The first due is always taken, so nobody
    who can still be in time starves. Nobody is left out where there is room: to run the short ones alone, in small ticks, would
    cost more throughput than it wins (docs/performance.md).
    """
    chosen: list[S] = []
    rows = tokens = 0
    work = 0.0
    for standing in sorted(
        standings, key=lambda each: each.workload.due(each.step_index, now, curve.slowdown)
    ):
        load, step = standing.workload, standing.step_index
        own = load.rows[step]
        fits = (
            rows + own <= limits.max_rows
            and tokens + own * load.tokens <= limits.max_tokens
            and work + load.work[step] <= curve.best_work
        )
        if chosen and not fits:
            continue
        chosen.append(standing)
        rows, tokens, work = rows + own, tokens + own * load.tokens, work + load.work[step]
        if rows == limits.max_rows:
            break
    return chosen


def in_arrival_order(chosen: Sequence[S], arrival: Iterable[S]) -> list[S]:
    """`chosen` as they arrived: while the same samples run, their batch need not be laid out again."""
    wanted = set(map(id, chosen))
    return [each for each in arrival if id(each) in wanted]
