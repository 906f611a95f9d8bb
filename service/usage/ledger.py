"""The ledger joins the usage records of gateways with the usage events of stages, and keeps their sums.

For each stage: busy seconds = seconds attributed to requests that have ended + seconds spent on requests in
progress + unattributed seconds. The last are split by reason.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from safelight.pipeline.params import UsageAmounts
from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.usage.aggregates import (
    GatewayEntry,
    LedgerEntry,
    LedgerState,
    PendingUsage,
    PeriodTotals,
    ReplicaEntry,
    ReplicaSeconds,
    RequestTotals,
)
from safelight.service.usage.changes import WHOLE, Changes
from safelight.service.usage.events import (
    GatewayReport,
    StageKey,
    StageReport,
    StageTotals,
    UsageEvent,
    UsageReport,
)
from safelight.service.usage.records import UsageRecord
from safelight.service.usage.series import RequestSeries

MINUTE = 60.0
MINUTES_KEPT = 24 * 60
REQUESTS_KEPT = 100_000  # for percentiles, and to attribute usage events that arrive after the request's end
SILENT_SECONDS = 10.0  # a replica without a report for so long counts as dead
EXPIRY_SECONDS = 1.0  # between two searches for dead replicas and orphaned usage
ORPHAN_SECONDS = 3600.0  # pending usage counts as lost after this time: the request's gateway has died


class Ledger:
    """Sums of usage since the accounts began and by the minute. Not thread-safe; times are Unix times.

    Args:
        clock: Returns the current Unix time.
        state: What an earlier ledger knew; None: nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.time, state: LedgerState | None = None):
        self._clock = clock
        self.state = LedgerState(clock()) if state is None else state
        self.changes = Changes()
        self._done: deque[LedgerEntry] = deque(
            (entry for entry in self.state.entries.values() if entry.record.is_done), REQUESTS_KEPT
        )
        self._gateways: dict[str, GatewayEntry] = {}
        self._last_expiry = -EXPIRY_SECONDS

    def receive(self, report: UsageReport) -> None:
        """Record a report, unless it was recorded before."""
        if report.number < self.state.next_number.get(report.source, 0):
            return
        self.state.next_number[report.source] = report.number + 1
        self.changes.sources.add(report.source)
        if isinstance(report, GatewayReport):
            self._record_gateway(report)
        else:
            self._record_stage(report)

    @property
    def since(self) -> float:
        """Unix time at which the accounts began."""
        return self.state.since

    @property
    def totals(self) -> PeriodTotals:
        """The sums since the accounts began."""
        return self.state.totals

    @property
    def key_names(self) -> Mapping[str, str]:
        """Names of the keys that requests came with, by id."""
        return self.state.key_names

    @property
    def series(self) -> Mapping[str, RequestSeries]:
        """What the metrics count of the requests of each model."""
        return self.state.series

    @property
    def now(self) -> float:
        return self._clock()

    def replicas(self, stage: str, model: str = "") -> list[ReplicaEntry]:
        """The living replicas of a stage that may serve `model`; without one, all of them."""
        self._expire()
        return [
            replica
            for replica in self.state.replicas.values()
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

    def gateways(self) -> list[GatewayEntry]:
        """The living gateways."""
        self._expire()
        return list(self._gateways.values())

    def in_flight(self) -> Counter[str]:
        """Images that gateways have not answered yet, by model."""
        images: Counter[str] = Counter()
        for gateway in self.gateways():
            images.update(dict(gateway.in_flight))
        return images

    def attributed(self, stage: str, model: str) -> float:
        """Device seconds of a stage for requests that have ended, of one model or, without one, of all."""
        chosen = self.series.values() if not model else [self.series[model]] if model in self.series else []
        return sum(series.attributed[stage].device_seconds for series in chosen)

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
        for minute, minute_totals in self.state.minutes.items():
            if minute >= first_minute:
                totals.add(minute_totals)
        return totals

    def done_entries(self, seconds: float | None = None) -> list[LedgerEntry]:
        """Of the last `REQUESTS_KEPT` requests that were answered with images, those since `window_start`."""
        start = 0.0 if seconds is None else self.window_start(seconds)
        return [entry for entry in self._done if entry.record.ended >= start]

    def latest_entries(self, number: int) -> list[LedgerEntry]:
        """The last `number` requests that ended, newest first."""
        return [entry for entry, _ in zip(reversed(self.state.entries.values()), range(number), strict=False)]

    def pending_seconds(self, key: StageKey) -> float:
        """Device seconds that a stage reported for requests that have not ended."""
        return sum(
            event.amounts.device_seconds
            for pending in self.state.pending.values()
            for event_key, event in pending.events
            if event_key == key
        )

    def open_seconds(self, key: StageKey) -> float:
        """Device seconds that a stage has spent on images that are still in it."""
        self._expire()
        return sum(
            replica.report.totals.open
            for replica in self.state.replicas.values()
            if replica.report.key == key
        )

    def _current_periods(self) -> Iterator[tuple[int, PeriodTotals]]:
        """The sums to which an event is added at this moment: of this minute, and since the beginning."""
        minute = int(self._clock() // MINUTE)
        if minute not in self.state.minutes:
            self.state.minutes[minute] = PeriodTotals()
            while len(self.state.minutes) > MINUTES_KEPT:
                self.state.minutes.popitem(last=False)
        yield minute, self.state.minutes[minute]
        yield WHOLE, self.state.totals

    def _account_totals(self, key: str, model: str) -> Iterator[RequestTotals]:
        """The sums of an account to which an event is added at this moment."""
        self.changes.is_urgent = True
        for minute, period in self._current_periods():
            self.changes.accounts.add((minute, key, model))
            yield period.accounts[key, model]

    def _stage_totals(self, key: StageKey) -> Iterator[ReplicaSeconds]:
        """The sums of a stage to which an event is added at this moment."""
        for minute, period in self._current_periods():
            self.changes.stages.add((minute, *key))
            yield period.stages[key]

    def _record_gateway(self, report: GatewayReport) -> None:
        self._gateways[report.source] = GatewayEntry(report.in_flight, self._clock())
        for record in report.records:
            self._record_request(record)
        for model, images in report.retried:
            self._series_of(model).retried += images
        if report.dropped:
            self.state.dropped += report.dropped
            self.changes.is_urgent = True
        self._expire()

    def _series_of(self, model: str) -> RequestSeries:
        self.changes.series.add(model)
        self.changes.is_urgent = True
        return self.state.series[model]

    def _record_request(self, record: UsageRecord) -> None:
        if record.record_id in self.state.entries:
            return
        entry = LedgerEntry(replace(record, image_usages=()), len(record.image_usages))
        self.state.entries[record.record_id] = entry
        self.changes.records.add(record.record_id)
        self.state.key_names[record.key] = record.key_name
        if record.is_done:
            self._done.append(entry)
        self._series_of(record.model).add_record(record)
        for totals in self._account_totals(record.key, record.model):
            totals.requests[record.outcome] += 1
            totals.images += entry.images
            totals.store += record.store
            if not record.is_done:
                totals.codes[record.code] += 1
        if pending := self.state.pending.pop(record.record_id, None):
            for (stage, _), event in pending.events:
                self._attribute(entry, stage, event.amounts)
        while len(self.state.entries) > REQUESTS_KEPT:
            self.state.entries.popitem(last=False)

    def _record_stage(self, report: StageReport) -> None:
        now = self._clock()
        previous = self.state.replicas.get(report.source) or self._revive(report.source)
        self.state.replicas[report.source] = ReplicaEntry(report, now)
        if previous:
            recorded = previous.report.totals
        else:
            recorded = StageTotals() if report.number == 0 else _totals_before(report)
        if report.events or replace(report.totals, open=0.0, work_left=0.0) != replace(
            recorded, open=0.0, work_left=0.0
        ):
            self.changes.is_urgent = True
        for seconds in self._stage_totals(report.key):
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
            for seconds in self._stage_totals(key):
                seconds.warm_up += event.amounts.device_seconds
        elif (entry := self.state.entries.get(event.record_id)) is not None:
            self._attribute(entry, key[0], event.amounts)
        else:
            pending = self.state.pending.setdefault(event.record_id, PendingUsage(self._clock()))
            pending.events.append((key, event))
            self.changes.records.add(event.record_id)

    def _attribute(self, entry: LedgerEntry, stage: str, amounts: UsageAmounts) -> None:
        entry.usage[stage] += amounts
        self.changes.records.add(entry.record.record_id)
        self._series_of(entry.record.model).attributed[stage] += amounts
        for totals in self._account_totals(entry.record.key, entry.record.model):
            totals.usage[stage] += amounts

    def _revive(self, source: str) -> ReplicaEntry | None:
        """The entry of a replica that counted as dead and reports again: its open seconds were not lost."""
        if (replica := self.state.silent_replicas.pop(source, None)) is not None:
            self._add_lost(replica.report.key, -replica.report.totals.open)
        return replica

    def _add_lost(self, key: StageKey, seconds: float) -> None:
        for totals in self._stage_totals(key):
            totals.lost += seconds

    def _expire(self) -> None:
        """Count open seconds of dead replicas and pending usage of dead gateways as lost.

        Runs at most every `EXPIRY_SECONDS`: it is called for every report, and visits every replica and every
        pending request.
        """
        now = self._clock()
        if now < self._last_expiry + EXPIRY_SECONDS:
            return
        self._last_expiry = now
        for source, replica in list(self.state.silent_replicas.items()):
            if now - replica.received > ORPHAN_SECONDS:
                del self.state.silent_replicas[source]
                self.state.next_number.pop(source, None)
                self.changes.sources.add(source)
        for source, replica in list(self.state.replicas.items()):
            if now - replica.received > SILENT_SECONDS:
                self.state.silent_replicas[source] = self.state.replicas.pop(source)
                self._add_lost(replica.report.key, replica.report.totals.open)
                self.changes.sources.add(source)
        for source, gateway in list(self._gateways.items()):
            if now - gateway.received > SILENT_SECONDS:
                del self._gateways[source]
        for record_id, pending in list(self.state.pending.items()):
            if now - pending.since > ORPHAN_SECONDS:
                del self.state.pending[record_id]
                self.changes.records.add(record_id)
                for key, event in pending.events:
                    self._add_lost(key, event.amounts.device_seconds)


def _totals_before(report: StageReport) -> StageTotals:
    """A replica's totals before its first report to this ledger: a previous ledger has recorded them."""
    reported = report.totals.open + sum(event.amounts.device_seconds for event in report.events)
    return replace(report.totals, busy=report.totals.busy - reported)
