"""Which samples run in the next tick: by priority for one caller, in fair shares between several.

Samples in the background take what all others leave (docs/adr/0020-batches.md).
Used by the engine on measured ticks, and by forecasts and simulations on a cost curve.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from heapq import heapify, heappop, heapreplace
from typing import Generic, TypeVar

from safelight.pipeline.params import BACKGROUND, Share
from safelight.pipeline.scheduling.batcher import Limits, Schedulable, TickRoom, select_batch
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import FairShares
from safelight.pipeline.scheduling.queue import WaitingQueue

# How much longer samples of callers below their share may take because of those of callers above it. Less
# costs throughput, more costs latency: docs/adr/0016-fair-shares.md.
MAX_STRETCH = 1.3
# How much longer samples of other callers may take because of those in the background.
MAX_BACKGROUND_STRETCH = 1.02
# Whoever arrives during a tick waits for its end. So a tick of background samples alone is no larger than one
# with so much of the best throughput.
BACKGROUND_THROUGHPUT = 0.95

S = TypeVar("S", bound=Schedulable)
R = TypeVar("R", bound=Schedulable)


def select_next_batch(
    running: Sequence[R],
    queue: WaitingQueue[S],
    now: float,
    limits: Limits,
    curve: CostCurve,
    shares: FairShares | None = None,
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
        shares: What each caller has had. Without it, and if all samples are one caller's, samples are
            selected by priority alone.

    Returns:
        Samples of `running` and of `queue`. Queue and shares are left as they are.
    """
    callers = {sample.workload.share.caller for sample in running} | queue.callers
    if shares is not None and (len(callers) > 1 or BACKGROUND.caller in callers):
        return _select_fairly(_Candidates(running, queue, now, limits, curve), limits, curve, shares)
    room = max(0, max_running(limits) - len(running))
    candidates: list[R | S] = [*running, *queue.earliest_due(room, now, curve.slowdown)]
    return select_batch(candidates, now, limits, curve)


def charge_by_curve(
    shares: FairShares,
    selected: Sequence[S],
    running: Iterable[S],
    queue: WaitingQueue[S],
    curve: CostCurve,
    ticks: int = 1,
) -> None:
    """Charge the callers of a selection that is about to run, as if ticks took what the curve says.

    Args:
        shares: Gets the charges.
        selected: The samples, before their ticks.
        running: As they were selected from, as is `queue`.
        queue: Still has the samples that start.
        curve: The cost curve at present.
        ticks: How many ticks the selection runs.
    """
    work = [sample.workload.work[sample.step_index] for sample in selected]
    price = ticks * curve.seconds_for(sum(work)) / sum(work)
    starting = Counter(sample.workload.share.caller for sample in selected if sample.step_index == 0)
    waiting = {share for share in queue.shares if queue.num_of(share.caller) > starting[share.caller]}
    packets = [(sample.workload.share, price * flops) for sample, flops in zip(selected, work, strict=True)]
    shares.dispatch(packets, waiting | passed_over(running, selected), full_tick_seconds(curve))
    shares.measure(packets)


def passed_over(running: Iterable[Schedulable], selected: Iterable[Schedulable]) -> Set[Share]:
    """The callers of running samples that are not selected."""
    ids = set(map(id, selected))
    return {sample.workload.share for sample in running if id(sample) not in ids}


def full_tick_seconds(curve: CostCurve) -> float:
    """The seconds of the largest tick that is worth its length."""
    return curve.seconds_for(min(curve.best_work, curve.work[-1]))


def max_running(limits: Limits) -> int:
    """The most samples that may have started and not finished."""
    return 2 * limits.max_rows


def background_work(curve: CostCurve) -> float:
    """The most work of a tick of background samples alone."""
    rates = [work / curve.seconds_for(work) for work in curve.work]
    min_rate = BACKGROUND_THROUGHPUT * max(rates)
    return next(work for work, rate in zip(curve.work, rates, strict=True) if rate >= min_rate)


class _Candidates(Generic[R, S]):
    """The samples of each caller in the order in which they would run, and the places for those that start.

    A caller of whom no sample runs can always start one, as long as there are no more such callers than
    places: the others' further samples leave these places free. Those in the background leave half of all
    places free.
    """

    def __init__(
        self,
        running: Sequence[R],
        queue: WaitingQueue[S],
        now: float,
        limits: Limits,
        curve: CostCurve,
    ):
        self._queue = queue
        self._now, self._slowdown = now, curve.slowdown
        self._running: dict[str, list[R]] = {}
        for sample in running:
            self._running.setdefault(sample.workload.share.caller, []).append(sample)
        self._places = max(0, max_running(limits) - len(running))
        self._kept_places = max_running(limits) // 2  # from samples in the background
        # who has no sample running
        self._newcomers = queue.callers - self._running.keys() - {BACKGROUND.caller}

    def callers(self) -> Iterator[tuple[str, R | S]]:
        """Each caller, with one of its samples; those who have samples running come first."""
        for caller, samples in self._running.items():
            yield caller, samples[0]
        newcomers = map(self._queue.first_of, self._newcomers)
        for sample in sorted(newcomers, key=lambda sample: sample.workload.arrived):
            yield sample.workload.share.caller, sample

    def of(self, caller: str) -> Iterator[tuple[R | S, bool]]:
        """The samples of a caller that may run, by priority, and whether each runs already."""
        waiting = self._queue.earliest_due(self._places, self._now, self._slowdown, caller)
        candidates: list[tuple[R | S, bool]] = [(sample, True) for sample in self._running.get(caller, ())]
        candidates += [(sample, False) for sample in waiting]
        candidates.sort(key=lambda entry: self._priority(entry[0]))
        for sample, is_running in candidates:
            if is_running or self._has_place(sample.workload.share):
                yield sample, is_running

    def start(self, caller: str) -> None:
        """Take a place for a sample that is not running yet."""
        self._places -= 1
        self._newcomers = self._newcomers - {caller}

    def _has_place(self, share: Share) -> bool:
        if share.is_background:
            return self._places > self._kept_places + len(self._newcomers)
        return self._places > (0 if share.caller in self._newcomers else len(self._newcomers))

    def _priority(self, sample: R | S) -> tuple[bool, int, float]:
        return sample.workload.priority(sample.step_index, self._now, self._slowdown)


def _select_fairly(
    candidates: _Candidates[R, S], limits: Limits, curve: CostCurve, shares: FairShares
) -> list[R | S]:
    """Select samples of the caller with the smallest start tag, one after another, while they fit.

    Beside samples of callers with credit, a caller that borrows does not stretch the tick by more than
    MAX_STRETCH: a full tick may take five times as long as those samples alone.

    Args:
        candidates: What may run.
        limits: The most that a tick may hold.
        curve: The cost curve at present.
        shares: The start tags, which advance here by what a full tick would cost.

    Returns:
        Samples in the order of their start tags, then those in the background.
    """
    price = full_tick_seconds(curve) / min(curve.best_work, curve.work[-1])
    lines = [
        (shares.start_tag(sample.workload.share), number, candidates.of(caller))
        for number, (caller, sample) in enumerate(candidates.callers())
        if not sample.workload.share.is_background
    ]
    heapify(lines)
    selected: list[R | S] = []
    room, longest = TickRoom(limits, curve.best_work), _LongestTick(curve)
    while lines and not room.is_full:
        tag, number, samples = lines[0]
        sample, is_running = next(samples, (None, True))
        if sample is None:
            heappop(lines)
            continue
        share, work = sample.workload.share, sample.workload.work[sample.step_index]
        if shares.is_borrowing(share, tag) and longest.is_exceeded_by(room.work + work):
            heappop(lines)
        elif room.take(sample):
            selected.append(sample)
            if not is_running:
                candidates.start(share.caller)
            if shares.has_credit(share, tag):
                longest.include(work)
            heapreplace(lines, (tag + price * work / share.weight, number, samples))
    background = _select_background(candidates, room, curve)
    return [*selected, *background]


def _select_background(candidates: _Candidates[R, S], room: TickRoom, curve: CostCurve) -> list[R | S]:
    """Select samples in the background for the room that the others leave.

    They do not stretch a tick of others by more than MAX_BACKGROUND_STRETCH. By themselves they make one of
    `background_work`, or one sample.
    """
    selected: list[R | S] = []
    max_seconds = curve.seconds_for(background_work(curve))
    if room.work:
        max_seconds = MAX_BACKGROUND_STRETCH * curve.seconds_for(room.work)
    for sample, is_running in candidates.of(BACKGROUND.caller):
        work = room.work + sample.workload.work[sample.step_index]
        if room.is_full or (room.work and curve.seconds_for(work) > max_seconds):
            break
        if room.take(sample):
            selected.append(sample)
            if not is_running:
                candidates.start(BACKGROUND.caller)
    return selected


class _LongestTick:
    """How long a tick may take, by its work for callers with credit: any time if there is none."""

    def __init__(self, curve: CostCurve):
        self._curve = curve
        self._work = 0.0

    def include(self, work: float) -> None:
        """Include work for a caller with credit."""
        self._work += work

    def is_exceeded_by(self, work: float) -> bool:
        """Whether a tick of `work` operations would take longer."""
        if not self._work:
            return False
        return self._curve.seconds_for(work) > MAX_STRETCH * self._curve.seconds_for(self._work)
