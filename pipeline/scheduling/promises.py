"""Admission by promise: a sample is let in if it, and those it delays, will be done when they were promised.

The forecast is a list schedule: samples take room in full ticks in the order in which the batcher prefers
them, each for as many full ticks as it has left. It takes time in proportion to the samples that the new one
delays, not to the ticks. Callers have their fair shares of the room.
Why, and what it does not cover: docs/adr/0015-promises.md.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from safelight.pipeline.params import ONLY_CALLER, Share, Urgency
from safelight.pipeline.scheduling.calibration import RatioQuantiles
from safelight.pipeline.scheduling.cost_curve import UNKNOWN, CostCurve
from safelight.pipeline.scheduling.recent_load import RecentLoad
from safelight.pipeline.scheduling.workload import order_key

# Samples that wait before a new one and are scheduled one by one; those before them count by their work.
MAX_SCHEDULED = 64
# A promise that nobody asked for is at least this many times what the request takes with the device full.
MIN_DEFAULT_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a sample asks of an engine.

    Attributes:
        sample_id: A name that no other sample of the engine has.
        ticks: How many ticks it takes.
        work: Floating-point operations of all of them.
        limit: When it must have left the engine; infinite without a promise.
        arrived: When it arrived. Times are seconds by `time.perf_counter`.
        share: Whose it is.
        level: Samples of a higher level go before others of their caller.
        is_background: Whether it goes after others until it must start.
        images: How many images its request has.
        is_default: Whether the promise is the service's own: long requests get a longer one.
        is_certain: Whether it is let in in any case.
        patience: It is let in only if it would be done in this part of the time until `limit`.
    """

    sample_id: str
    ticks: int
    work: float
    limit: float
    arrived: float
    share: Share = ONLY_CALLER
    level: int = 0
    is_background: bool = False
    images: int = 1
    is_default: bool = False
    is_certain: bool = False
    patience: float = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an engine says to a demand.

    Attributes:
        is_admitted: Whether the promise can be kept.
        seconds: Until the sample leaves the engine, as expected.
        limit: When it must have left; see `Demand.limit`.
        retry_seconds: After which the same demand would be admitted, if nothing else arrived. 0 if it is.
        is_possible: Whether an idle engine would admit it.
        work_seconds: Of the device, at the rate of full ticks.
    """

    is_admitted: bool
    seconds: float
    limit: float
    retry_seconds: float = 0.0
    is_possible: bool = True
    work_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Entry:
    """A sample in the engine."""

    demand: Demand
    limit: float
    key: tuple[int, float]  # its place in the order of its caller's samples
    ticks_left: int
    admitted_at: float
    finish: float = 0.0  # as last forecast
    told_seconds: float = 0.0  # as forecast at admission, before calibration

    @property
    def tick_work(self) -> float:
        return self.demand.work / self.demand.ticks

    @property
    def work_left(self) -> float:
        return self.tick_work * self.ticks_left


@dataclass(slots=True)
class _Line:
    """The samples of one caller: those that have started, and the others in their order."""

    weight: float
    started: dict[str, _Entry] = field(default_factory=dict)
    waiting: list[tuple[tuple[int, float], int, _Entry]] = field(default_factory=list)

    @property
    def work_left(self) -> float:
        return sum(entry.work_left for entry in self.started.values()) + sum(
            entry.work_left for *_, entry in self.waiting
        )


class AdmissionControl:
    """Which samples are in an engine, and which more it can promise to finish in time. Not thread-safe.

    Args:
        probability: With which promises should be kept.
    """

    def __init__(self, probability: float = 0.95):
        self._probability = probability
        self._lines: dict[str, _Line] = {}
        self._entries: dict[str, _Entry] = {}
        self._number = 0
        self._ratios = RatioQuantiles()  # actual seconds by those that were last forecast
        self._told_ratios = RatioQuantiles()  # actual seconds by those that were told at admission
        self._loads = RecentLoad()
        self.update(UNKNOWN)

    def update(self, curve: CostCurve, max_work: float = math.inf) -> None:
        """Set what ticks cost now, and the most work that the limits allow in one."""
        self._curve = curve
        self._full_work = min(curve.best_work, curve.work[-1], max_work)
        self._full_seconds = curve.seconds_for(self._full_work)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def backlog_seconds(self) -> float:
        """The seconds that all samples in the engine will take in full ticks."""
        return self._seconds(sum(line.work_left for line in self._lines.values()))

    def offer(self, demand: Demand, now: float) -> Forecast:
        """Let a sample in if its promise, and those of the samples that it delays, will be kept."""
        self._loads.add(demand.share.caller, demand.work, now)
        entry, forecast = self._forecast(demand, now)
        if forecast.is_admitted:
            self._add(entry)
            entry.told_seconds = entry.finish - now
        return forecast

    def quote(self, demand: Demand, now: float) -> Forecast:
        """What `offer` would say."""
        return self._forecast(demand, now)[1]

    def progress(self, sample_id: str, ticks_done: int) -> None:
        """A sample has started, and done so many ticks. Unknown ones are ignored."""
        entry = self._entries.get(sample_id)
        if entry is None:
            return
        entry.ticks_left = max(0, entry.demand.ticks - ticks_done)
        line = self._lines[entry.demand.share.caller]
        if ticks_done and sample_id not in line.started:
            line.waiting = [item for item in line.waiting if item[2] is not entry]
            line.started[sample_id] = entry

    def leave(self, sample_id: str, now: float, is_done: bool) -> None:
        """A sample has left the engine. Unknown ones are ignored."""
        entry = self._entries.pop(sample_id, None)
        if entry is None:
            return
        caller = entry.demand.share.caller
        line = self._lines[caller]
        if line.started.pop(sample_id, None) is None:
            line.waiting = [item for item in line.waiting if item[2] is not entry]
        if not line.started and not line.waiting:
            del self._lines[caller]
        if is_done:
            # A tick more or less is no error of the forecast: a sample joins at the end of a tick.
            seconds, tick = now - entry.admitted_at, self._full_seconds
            self._ratios.add((seconds + tick) / (entry.finish - entry.admitted_at + tick))
            self._told_ratios.add((seconds + tick) / (entry.told_seconds + tick))

    def clear(self) -> None:
        """All samples have left without being done."""
        self._entries.clear()
        self._lines.clear()

    def _seconds(self, work: float) -> float:
        """Of `work` in full ticks."""
        return work * self._full_seconds / self._full_work

    def _add(self, entry: _Entry) -> None:
        share = entry.demand.share
        line = self._lines.setdefault(share.caller, _Line(share.weight))
        self._number += 1
        insort(line.waiting, (entry.key, self._number, entry))
        self._entries[entry.demand.sample_id] = entry

    def _forecast(self, demand: Demand, now: float) -> tuple[_Entry, Forecast]:
        margin = self._ratios.quantile(self._probability)
        own_seconds = self._seconds(demand.work)
        alone = demand.ticks * self._curve.seconds_for(demand.work / demand.ticks)
        in_full_ticks = demand.ticks * self._full_seconds
        limit = demand.limit
        if demand.is_default:
            request_seconds = in_full_ticks + (demand.images - 1) * own_seconds
            limit = max(limit, demand.arrived + MIN_DEFAULT_RATIO * margin * request_seconds)
        urgency = Urgency(limit, demand.level, demand.is_background)
        key = order_key(urgency, demand.arrived, alone, in_full_ticks)
        entry = _Entry(demand, limit, key, demand.ticks, now)
        late, retry = self._schedule(entry, now, margin)
        is_admitted = demand.is_certain or not late
        seconds = max(0.0, entry.finish - now) * self._told_ratios.quantile(0.5)
        return entry, Forecast(
            is_admitted=is_admitted,
            seconds=seconds,
            limit=limit,
            retry_seconds=0.0 if is_admitted else retry,
            is_possible=margin * alone <= limit - now,
            work_seconds=own_seconds,
        )

    def _schedule(self, new: _Entry, now: float, margin: float) -> tuple[bool, float]:
        """Forecast when the new sample and those that it delays finish.

        Returns:
            Whether a promise is broken, and the seconds until that would not be so.
        """
        line = self._lines.get(new.demand.share.caller) or _Line(new.demand.share.weight)
        position = bisect_right(line.waiting, new.key, key=lambda item: item[0])
        first = max(0, position - MAX_SCHEDULED)
        skipped = self._seconds(sum(entry.work_left for *_, entry in line.waiting[:first]))
        before = [*line.started.values(), *(entry for *_, entry in line.waiting[first:position])]
        behind = [entry for *_, entry in line.waiting[position:]]
        finishes = self._finishes([*before, new, *behind], new.demand.share, skipped, now)
        is_late, retry = False, 0.0
        for entry, finish in zip([new, *behind], finishes[len(before) :], strict=True):
            patience = new.demand.patience if entry is new else 1.0
            seconds = patience * (entry.limit - now) / margin
            entry_is_late = finish - now > seconds
            if entry is new:
                new.finish = finish
                if entry_is_late:
                    retry = finish - now - seconds
            elif entry_is_late:
                # it cannot be delayed any more once it has started
                retry = max(retry, finish - now - entry.ticks_left * self._full_seconds)
            is_late |= entry_is_late
        if not is_late:
            for entry, finish in zip(behind, finishes[len(before) + 1 :], strict=True):
                entry.finish = finish
        return is_late, max(retry, self._full_seconds)

    def _finishes(self, entries: Sequence[_Entry], share: Share, skipped: float, now: float) -> list[float]:
        """When each of a caller's samples finishes.

        Others take their shares of every tick, or, if they have little to do, all that they need at once.
        """
        others = {
            caller: (line.weight, line.work_left)
            for caller, line in self._lines.items()
            if caller != share.caller
        }
        together = sum(entry.tick_work for entry in entries) + sum(
            entry.tick_work
            for caller, line in self._lines.items()
            if caller != share.caller
            for entry in (*line.started.values(), *(item[2] for item in line.waiting[:MAX_SCHEDULED]))
        )
        if not skipped and together <= self._full_work:  # all run at once
            tick = self._curve.seconds_for(together)
            return [now + entry.ticks_left * tick for entry in entries]
        alone = self._list_schedule(entries, self._full_work, now + skipped)
        if not others:
            return alone
        total = share.weight + sum(weight for weight, _ in others.values())
        part = share.weight / total
        wait = self._seconds(sum(work for _, work in others.values()))
        # those who sent lately go on, but have no more than their shares
        expected = sum(
            min(self._seconds(self._loads.rate(caller, now)), weight / total)
            for caller, (weight, _) in others.items()
        )
        shared = self._list_schedule(entries, part * self._full_work, now + skipped / part)
        return [
            min(now + (first - now + wait) / (1.0 - expected), second)
            for first, second in zip(alone, shared, strict=True)
        ]

    def _list_schedule(self, entries: Sequence[_Entry], room: float, start: float) -> list[float]:
        """When each sample finishes if they take room in ticks in their order, as soon as there is some."""
        time, used = start, 0.0
        running: list[tuple[float, float]] = []
        finishes = []
        for entry in entries:
            while running and used + entry.tick_work > room * (1 + 1e-9):
                finish, work = heappop(running)
                time, used = max(time, finish), used - work
            finish = time + entry.ticks_left * self._full_seconds
            heappush(running, (finish, entry.tick_work))
            used += entry.tick_work
            finishes.append(finish)
        return finishes
