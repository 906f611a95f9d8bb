"""The waiting samples, sorted by priority for each caller, so that a tick inspects only a few of them."""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Set
from heapq import merge
from itertools import count
from typing import Generic, TypeVar

from safelight.pipeline.params import Share
from safelight.pipeline.scheduling.batcher import Schedulable

S = TypeVar("S", bound=Schedulable)

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
        self._sorted: dict[str, list[tuple[tuple[int, float], int, S]]] = {}  # by caller; none is empty
        self._arrivals: dict[Hashable, tuple[int, S]] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[S]:
        """The earliest due first, whoever asked for it."""
        entries = merge(*self._sorted.values()) if len(self._sorted) > 1 else self._only_entries()
        return (sample for _, _, sample in entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrivals

    @property
    def callers(self) -> Set[str]:
        """Who has samples here."""
        return self._sorted.keys()

    @property
    def shares(self) -> Set[Share]:
        """The same callers with their weights."""
        return {entries[0][2].workload.share for entries in self._sorted.values()}

    def num_of(self, caller: str) -> int:
        """How many samples of a caller wait."""
        return len(self._sorted.get(caller, ()))

    def get(self, key: Hashable) -> S | None:
        """The sample with this key, or None."""
        arrival = self._arrivals.get(key)
        return None if arrival is None else arrival[1]

    def by_arrival(self) -> Iterator[S]:
        """The first to arrive first."""
        return (sample for _, sample in self._arrivals.values())

    def first_of(self, caller: str) -> S:
        """The sample of a caller that is due first. Raises `KeyError` if none of it waits."""
        return self._sorted[caller][0][2]

    def add(self, sample: S) -> None:
        number = next(self._numbers)
        self._arrivals[self._key(sample)] = number, sample
        entries = self._sorted.setdefault(sample.workload.share.caller, [])
        insort(entries, (self._due(sample), number, sample))

    def remove(self, sample: S) -> None:
        """Raises `ValueError` if the sample is not in the queue."""
        arrival = self._arrivals.pop(self._key(sample), None)
        if arrival is None:
            raise ValueError("not in the queue")
        caller = sample.workload.share.caller
        entries = self._sorted[caller]
        del entries[bisect_left(entries, (self._due(sample), arrival[0]))]
        if not entries:
            del self._sorted[caller]

    def earliest_due(self, limit: int, now: float, slowdown: float, caller: str | None = None) -> list[S]:
        """At most `limit` samples, the earliest due first; those that will miss their deadline come last.

        Args:
            limit: The most samples.
            now: Seconds by `time.perf_counter`.
            slowdown: Of the cost curve at present.
            caller: Whose samples; None for all.
        """
        self._sort_again(slowdown)
        samples = iter(self) if caller is None else (sample for *_, sample in self._sorted.get(caller, ()))
        punctual, late = list[S](), list[S]()
        for sample in samples:
            if len(punctual) == limit:
                break
            is_late, *_ = sample.workload.priority(0, now, slowdown)
            (late if is_late else punctual).append(sample)
        return punctual + late[: limit - len(punctual)]

    def _sort_again(self, slowdown: float) -> None:
        """Sort by another slowdown, if it is far from the one that the samples are sorted by."""
        if not 1 / RESORT_RATIO < slowdown / self._slowdown < RESORT_RATIO:
            self._slowdown = slowdown
            for caller, entries in self._sorted.items():
                self._sorted[caller] = sorted(
                    (self._due(sample), number, sample) for _, number, sample in entries
                )

    def _only_entries(self) -> Iterator[tuple[tuple[int, float], int, S]]:
        """The entries of the only caller, if there is one."""
        return iter(next(iter(self._sorted.values()), ()))

    def _due(self, sample: S) -> tuple[int, float]:
        _, level, due = sample.workload.priority(0, 0.0, self._slowdown)
        return level, due
