"""Those who wait, kept in the order in which they are due, so that a tick looks at a few of them however many there are."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Generic, TypeVar

from safelight.pipeline.scheduling.batcher import Limits, Schedulable, select_batch
from safelight.pipeline.scheduling.cost_curve import CostCurve

S = TypeVar("S", bound=Schedulable)

STALE = 1.1  # how far the machine's slowness may drift before everybody is sorted anew


class WaitingQueue(Generic[S]):
    """Samples of which no tick has run, by `Load.due`."""

    def __init__(self, slowness: float = 1.0):
        self._slowness = slowness  # that they are sorted by
        self._sorted: list[tuple[float, int, S]] = []
        self._numbers = count()  # who came first goes first among equals

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[S]:
        """The most due first."""
        return (standing for _, _, standing in self._sorted)

    def add(self, standing: S) -> None:
        insort(self._sorted, (self._due(standing), next(self._numbers), standing))

    def remove(self, standing: S) -> None:
        """Raises `ValueError` if it is not here."""
        start = bisect_left(self._sorted, (self._due(standing),))
        for place in range(start, len(self._sorted)):
            if self._sorted[place][2] is standing:
                del self._sorted[place]
                return
        raise ValueError("not in the queue")

    def earliest_due(self, number: int, now: float, slowness: float) -> list[S]:
        """At most so many, the most due first; those who can no longer be in time only where there are no others."""
        if not 1 / STALE < slowness / self._slowness < STALE:
            self._slowness = slowness
            self._sorted = sorted(
                (self._due(standing), number, standing) for _, number, standing in self._sorted
            )
        punctual, late = list[S](), list[S]()
        for standing in self:
            if len(punctual) == number:
                break
            is_late, _ = standing.workload.due(0, now, slowness)
            (late if is_late else punctual).append(standing)
        return punctual + late[: number - len(punctual)]

    def _due(self, standing: S) -> float:
        return standing.workload.due(0, 0.0, self._slowness)[1]


def select_next_batch(
    begun: Sequence[S], queue: WaitingQueue[S], now: float, limits: Limits, curve: CostCurve
) -> list[S]:
    """Who runs in the next tick, of those who have `begun` and of the most due who wait.

    Of these, as many as may begin: twice what a tick holds, because what has begun lies on the device, also while it is passed over.
    """
    room = max(0, 2 * limits.max_rows - len(begun))
    return select_batch([*begun, *queue.earliest_due(room, now, curve.slowdown)], now, limits, curve)
