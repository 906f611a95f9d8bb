"""The ledger joins the usage records of gateways with the usage events of stages, and keeps their sums.

For each stage: busy seconds = seconds attributed to requests that have ended + seconds spent on requests in
progress + unattributed seconds. The last are split by reason.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from safelight.pipeline.params import UsageAmounts
from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.usage.aggregates import LedgerEntry, PendingUsage, PeriodTotals, ReplicaEntry
from safelight.service.usage.events import (
    GatewayReport,
    StageKey,
    StageReport,
    StageTotals,
    UsageEvent,
    UsageReport,
)
from safelight.service.usage.records import UsageRecord

MINUTE = 60.0
MINUTES_KEPT = 24 * 60
REQUESTS_KEPT = 100_000  # for percentiles, and to attribute usage events that arrive after the request's end
SILENT_SECONDS = 10.0  # a replica without a report for so long counts as dead
EXPIRY_SECONDS = 1.0  # between two searches for dead replicas and orphaned usage
ORPHAN_SECONDS = 3600.0  # pending usage counts as lost after this time: the request's gateway has died


class Ledger:
    """Sums of usage since the start and by the minute. Not thread-safe; times are Unix times.

    Args:
        clock: Returns the current Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self.since = clock()
        self.totals = PeriodTotals()  # since the start
        self.key_names: dict[str, str] = {}  # of the keys that requests came with, by id
        self._minutes: OrderedDict[int, PeriodTotals] = OrderedDict()
        self._entries: OrderedDict[str, LedgerEntry] = OrderedDict()
        self._done: deque[LedgerEntry] = deque(maxlen=REQUESTS_KEPT)
        self._pending: dict[str, PendingUsage] = {}
        self._next_number: dict[str, int] = {}
        self._replicas: dict[str, ReplicaEntry] = {}
        self._silent_replicas: dict[str, ReplicaEntry] = {}
        self._last_expiry = -EXPIRY_SECONDS

    def receive(self, report: UsageReport) -> None:
        """Record a report, unless it was recorded before."""
        if report.number < self._next_number.get(report.source, 0):
            return
        self._next_number[report.source] = report.number + 1
        if isinstance(report, GatewayReport):
            for record in report.records:
                self._record_request(record)
        else:
            self._record_stage(report)

    @property
    def now(self) -> float:
        return self._clock()

    def replicas(self, stage: str, model: str = "") -> list[ReplicaEntry]:
        """The living replicas of a stage that may serve `model`; without one, all of them."""
        self._expire()
        return [
            replica
            for replica in self._replicas.values()
            if replica.report.stage == stage and (not model or replica.report.model in ("", model))
        ]

    def stage_keys(self) -> list[StageKey]:
        """The stages that have reported, by their models; every stage is there at least once."""
        keys = sorted(self.totals.stages, key=lambda key: (STAGES.index(key[0]), key[1]))
        return keys + [(stage, "") for stage in STAGES if stage not in dict(keys)]

    def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        """Each stage's status by the report that arrived last; None for a stage without a living replica.

        Args:
            model: Id of the model that the stages should serve; empty: any.
        """
        latest = {
            stage: max(self.replicas(stage, model), key=lambda replica: replica.received, default=None)
            for stage in STAGES
        }
        return {stage: replica.report.status if replica else None for stage, replica in latest.items()}

    def window_start(self, seconds: float | None = None) -> float:
        """Start of the last `seconds`, rounded down to a whole minute; with None, the ledger's start."""
        if seconds is None:
            return self.since
        now = self._clock()
        minute = max((now - seconds) // MINUTE, now // MINUTE - MINUTES_KEPT + 1)
        return max(self.since, minute * MINUTE)

    def window_totals(self, seconds: float | None = None) -> PeriodTotals:
        """The sums since `window_start`."""
        if seconds is None:
            return self.totals
        totals, first_minute = PeriodTotals(), int(self.window_start(seconds) // MINUTE)
        for minute, minute_totals in self._minutes.items():
            if minute >= first_minute:
                totals.add(minute_totals)
        return totals

    def done_entries(self, seconds: float | None = None) -> list[LedgerEntry]:
        """Of the last `REQUESTS_KEPT` requests that were answered with images, those since `window_start`."""
        start = 0.0 if seconds is None else self.window_start(seconds)
        return [entry for entry in self._done if entry.record.ended >= start]

    def latest_entries(self, number: int) -> list[LedgerEntry]:
        """The last `number` requests that ended, newest first."""
        return [entry for entry, _ in zip(reversed(self._entries.values()), range(number), strict=False)]

    def pending_seconds(self, key: StageKey) -> float:
        """Device seconds that a stage reported for requests that have not ended."""
        return sum(
            event.amounts.device_seconds
            for pending in self._pending.values()
            for event_key, event in pending.events
            if event_key == key
        )

    def open_seconds(self, key: StageKey) -> float:
        """Device seconds that a stage has spent on images that are still in it."""
        self._expire()
        return sum(
            replica.report.totals.open for replica in self._replicas.values() if replica.report.key == key
        )

    def _current_periods(self) -> Iterator[PeriodTotals]:
        """The sums to which an event is added at this moment: since the start, and of this minute."""
        minute = int(self._clock() // MINUTE)
        if minute not in self._minutes:
            self._minutes[minute] = PeriodTotals()
            while len(self._minutes) > MINUTES_KEPT:
                self._minutes.popitem(last=False)
        yield self.totals
        yield self._minutes[minute]

    def _record_request(self, record: UsageRecord) -> None:
        if record.record_id in self._entries:
            return
        entry = LedgerEntry(replace(record, image_usages=()), len(record.image_usages))
        self._entries[record.record_id] = entry
        self.key_names[record.key] = record.key_name
        if record.is_done:
            self._done.append(entry)
        for period in self._current_periods():
            totals = period.accounts[record.key, record.model]
            totals.requests[record.outcome] += 1
            totals.images += entry.images
            totals.store += record.store
            if not record.is_done:
                totals.codes[record.code] += 1
        if pending := self._pending.pop(record.record_id, None):
            for (stage, _), event in pending.events:
                self._attribute(entry, stage, event.amounts)
        while len(self._entries) > REQUESTS_KEPT:
            self._entries.popitem(last=False)

    def _record_stage(self, report: StageReport) -> None:
        now = self._clock()
        previous = self._replicas.get(report.source) or self._revive(report.source)
        self._replicas[report.source] = ReplicaEntry(report, now)
        if previous:
            recorded = previous.report.totals
        else:
            recorded = StageTotals() if report.number == 0 else _totals_before(report)
        for period in self._current_periods():
            seconds = period.stages[report.key]
            seconds.alive += now - previous.received if previous else 0.0
            seconds.busy += report.totals.busy - recorded.busy
            seconds.starting += report.totals.starting - recorded.starting
            seconds.lost += report.totals.lost - recorded.lost
            seconds.ticks += report.totals.ticks - recorded.ticks
        for event in report.events:
            self._record_event(report.key, event)
        self._expire()

    def _record_event(self, key: StageKey, event: UsageEvent) -> None:
        if not event.record_id:
            for period in self._current_periods():
                period.stages[key].warm_up += event.amounts.device_seconds
        elif (entry := self._entries.get(event.record_id)) is not None:
            self._attribute(entry, key[0], event.amounts)
        else:
            pending = self._pending.setdefault(event.record_id, PendingUsage(self._clock()))
            pending.events.append((key, event))

    def _attribute(self, entry: LedgerEntry, stage: str, amounts: UsageAmounts) -> None:
        entry.usage[stage] += amounts
        for period in self._current_periods():
            period.accounts[entry.record.key, entry.record.model].usage[stage] += amounts

    def _revive(self, source: str) -> ReplicaEntry | None:
        """The entry of a replica that counted as dead and reports again: its open seconds were not lost."""
        if (replica := self._silent_replicas.pop(source, None)) is not None:
            self._add_lost(replica.report.key, -replica.report.totals.open)
        return replica

    def _add_lost(self, key: StageKey, seconds: float) -> None:
        for period in self._current_periods():
            period.stages[key].lost += seconds

    def _expire(self) -> None:
        """Count open seconds of dead replicas and pending usage of dead gateways as lost.

        Runs at most every `EXPIRY_SECONDS`: it is called for every report, and visits every replica and every
        pending request.
        """
        now = self._clock()
        if now < self._last_expiry + EXPIRY_SECONDS:
            return
        self._last_expiry = now
        for source, replica in list(self._silent_replicas.items()):
            if now - replica.received > ORPHAN_SECONDS:
                del self._silent_replicas[source]
                self._next_number.pop(source, None)
        for source, replica in list(self._replicas.items()):
            if now - replica.received > SILENT_SECONDS:
                self._silent_replicas[source] = self._replicas.pop(source)
                self._add_lost(replica.report.key, replica.report.totals.open)
        for record_id, pending in list(self._pending.items()):
            if now - pending.since > ORPHAN_SECONDS:
                del self._pending[record_id]
                for key, event in pending.events:
                    self._add_lost(key, event.amounts.device_seconds)


def _totals_before(report: StageReport) -> StageTotals:
    """A replica's totals before its first report to this ledger: a previous ledger has recorded them."""
    reported = report.totals.open + sum(event.amounts.device_seconds for event in report.events)
    return replace(report.totals, busy=report.totals.busy - reported)
