"""The waiting samples, sorted by priority, so that a tick inspects only a few of them."""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count
from typing import Generic, TypeVar

from safelight.pipeline.scheduling.batcher import Limits, Schedulable, select_batch
from safelight.pipeline.scheduling.cost_curve import CostCurve

S = TypeVar("S", bound=Schedulable)
R = TypeVar("R", bound=Schedulable)

RESORT_RATIO = 1.1  # how far the machine's slowdown may drift before the queue is sorted again


class WaitingQueue(Generic[S]):
    """Samples that have not started, sorted by `SampleWorkload.priority` and found by a key.

    Args:
        slowdown: The slowdown of the cost curve at present.
        key: What identifies a sample; by default its `id`.
    """

    def __init__(self, slowdown: float = 1.0, key: Callable[[S], Hashable] = id):
        self._slowdown = slowdown  # the one that the samples are sorted by
        self._key = key
        self._numbers = count()  # among equals the first to arrive goes first
        self._sorted: list[tuple[float, int, S]] = []
        self._arrivals: dict[Hashable, tuple[int, S]] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[S]:
        """The earliest due first."""
        return (sample for _, _, sample in self._sorted)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrivals

    def get(self, key: Hashable) -> S | None:
        """The sample with this key, or None."""
        arrival = self._arrivals.get(key)
        return None if arrival is None else arrival[1]

    def by_arrival(self) -> Iterator[S]:
        """The first to arrive first."""
        return (sample for _, sample in self._arrivals.values())

    def add(self, sample: S) -> None:
        number = next(self._numbers)
        self._arrivals[self._key(sample)] = number, sample
        insort(self._sorted, (self._due(sample), number, sample))

    def remove(self, sample: S) -> None:
        """Raises `ValueError` if the sample is not in the queue."""
        arrival = self._arrivals.pop(self._key(sample), None)
        if arrival is None:
            raise ValueError("not in the queue")
        del self._sorted[bisect_left(self._sorted, (self._due(sample), arrival[0]))]

    def earliest_due(self, limit: int, now: float, slowdown: float) -> list[S]:
        """At most `limit` samples, the earliest due first; those that will miss their deadline come last."""
        if not 1 / RESORT_RATIO < slowdown / self._slowdown < RESORT_RATIO:
            self._slowdown = slowdown
            self._sorted = sorted((self._due(sample), number, sample) for _, number, sample in self._sorted)
        punctual, late = list[S](), list[S]()
        for sample in self:
            if len(punctual) == limit:
                break
            is_late, _ = sample.workload.priority(0, now, slowdown)
            (late if is_late else punctual).append(sample)
        return punctual + late[: limit - len(punctual)]

    def _due(self, sample: S) -> float:
        return sample.workload.priority(0, 0.0, self._slowdown)[1]


def select_next_batch(
    running: Sequence[R],
    queue: WaitingQueue[S],
    now: float,
    limits: Limits,
    curve: CostCurve,
) -> list[R | S]:
    """Select the samples of the next tick from those that run and the earliest due that wait.

    At most twice as many samples run as a tick holds: a running sample occupies the device even while it is
    passed over.

    Args:
        running: Samples that have started.
        queue: Samples that wait.
        now: Seconds by `time.perf_counter`.
        limits: The most that a tick may hold.
        curve: The cost curve at present.

    Returns:
        Samples of `running` and of `queue`, by priority. The queue is left as it is.
    """
    room = max(0, 2 * limits.max_rows - len(running))
    candidates: list[R | S] = [*running, *queue.earliest_due(room, now, curve.slowdown)]
    return select_batch(candidates, now, limits, curve)
