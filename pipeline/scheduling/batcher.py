"""Which samples run in a tick: pure rules, which the engine, the forecast and the simulations share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.workload import SampleWorkload


class Schedulable(Protocol):
    """A sample as the scheduler sees it: its workload and the ticks it has done."""

    @property
    def workload(self) -> SampleWorkload: ...

    @property
    def step_index(self) -> int: ...


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one tick may hold. Together they bound the memory of a tick."""

    max_rows: int  # rows of the network's batch
    max_tokens: int  # image tokens of all rows

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided sample has two rows")
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be positive")


def select_batch(samples: Iterable[S], now: float, limits: Limits, curve: CostCurve) -> list[S]:
    """Select the samples of the next tick, at time `now` in seconds by `time.perf_counter`.

    Samples are selected by `SampleWorkload.priority` while they fit into `limits` and into `curve.best_work`,
    beyond which a larger tick does less work a second.
    The first is always selected, so no sample that can still meet its deadline starves.
    No sample is left out while there is room for it: running short samples alone, in small ticks, costs more
    throughput than it gains (docs/performance.md).
    """
    selected: list[S] = []
    room = TickRoom(limits, curve.best_work)
    for sample in sorted(samples, key=lambda s: s.workload.priority(s.step_index, now, curve.slowdown)):
        if room.take(sample):
            selected.append(sample)
        if room.is_full:
            break
    return selected


class TickRoom:
    """The room that a tick has left while its samples are selected.

    Args:
        limits: The most that it may hold.
        best_work: The most work that is worth putting into it.
    """

    def __init__(self, limits: Limits, best_work: float):
        self._limits = limits
        self._best_work = best_work
        self._rows = self._tokens = 0
        self.work = 0.0  # of what it holds

    @property
    def is_full(self) -> bool:
        """Whether no further row fits."""
        return self._rows >= self._limits.max_rows

    def take(self, sample: Schedulable) -> bool:
        """Take a sample in, and return whether there was room for it; for the first one there always is."""
        workload, step = sample.workload, sample.step_index
        rows = self._rows + workload.rows[step]
        tokens = self._tokens + workload.rows[step] * workload.tokens
        work = self.work + workload.work[step]
        is_within = (
            rows <= self._limits.max_rows and tokens <= self._limits.max_tokens and work <= self._best_work
        )
        if self._rows and not is_within:
            return False
        self._rows, self._tokens, self.work = rows, tokens, work
        return True


def in_arrival_order(selected: Sequence[S], arrivals: Iterable[S]) -> list[S]:
    """`selected` in the order of `arrivals`, so that a batch of the same samples keeps its layout."""
    ids = set(map(id, selected))
    return [sample for sample in arrivals if id(sample) in ids]
