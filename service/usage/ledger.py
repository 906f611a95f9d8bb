"""The ledger: requests as their gateways ended them, joined with what the stages charged for them. It adds up.

Of every stage: busy seconds = charged to requests + of requests that are still here + unattributed, and the last has names.
"""

import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent, UsageReport
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.records import RequestOutcome, UsageRecord

MINUTE = 60.0
MINUTES_KEPT = 24 * 60
REQUESTS_KEPT = 100_000  # to say percentiles of, and to know whose a late charge is
SILENT_SECONDS = 10.0  # a replica that has not stated anything for so long is gone
BURY_SECONDS = 1.0  # between two looks at who is gone
UNCLAIMED_SECONDS = 3600.0  # charges of a request that never ended: its gateway was lost


@dataclass(slots=True)
class UsageAmounts:
    """What a stage spent on some requests."""

    device_seconds: float = 0.0
    queue_seconds: float = 0.0
    flops: int = 0
    nfe: int = 0
    rows: int = 0
    tokens: int = 0

    def add(self, charge: "UsageEvent | UsageAmounts") -> None:
        self.device_seconds += charge.device_seconds
        self.queue_seconds += charge.queue_seconds
        self.flops += charge.flops
        self.nfe += charge.nfe
        self.rows += charge.rows
        self.tokens += charge.tokens


def _spent_by_stage() -> dict[str, UsageAmounts]:
    return {stage: UsageAmounts() for stage in STAGES}


@dataclass(slots=True)
class Tally:
    """Some requests together: all of one key and model, in one span of time."""

    requests: Counter[RequestOutcome] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of those that were not done
    images: int = 0
    spent: dict[str, UsageAmounts] = field(default_factory=_spent_by_stage)

    def add(self, other: "Tally") -> None:
        self.requests += other.requests
        self.codes += other.codes
        self.images += other.images
        for stage, spent in other.spent.items():
            self.spent[stage].add(spent)


@dataclass(slots=True)
class Busy:
    """The replicas of one stage together, dead ones included: seconds."""

    alive: float = 0.0
    busy: float = 0.0
    starting: float = 0.0
    warm_up: float = 0.0  # charged to nobody
    lost: float = 0.0  # spent on images whose replica died with them, or whose gateway did
    ticks: TickHistogramData = field(default_factory=TickHistogramData)

    def add(self, other: "Busy") -> None:
        self.alive += other.alive
        self.busy += other.busy
        self.starting += other.starting
        self.warm_up += other.warm_up
        self.lost += other.lost
        self.ticks += other.ticks


def _busy_by_stage() -> dict[str, Busy]:
    return {stage: Busy() for stage in STAGES}


@dataclass(slots=True)
class Period:
    """Everything in one span of time."""

    accounts: defaultdict[tuple[str, str], Tally] = field(
        default_factory=lambda: defaultdict(Tally)
    )  # by key and model
    stages: dict[str, Busy] = field(default_factory=_busy_by_stage)

    def add(self, other: "Period") -> None:
        for of, tally in other.accounts.items():
            self.accounts[of].add(tally)
        for stage, busy in other.stages.items():
            self.stages[stage].add(busy)


@dataclass(slots=True)
class LedgerEntry:
    """One request and what it cost, as far as is known."""

    record: UsageRecord
    images: int  # drawn and sent
    spent: dict[str, UsageAmounts] = field(default_factory=_spent_by_stage)


@dataclass(slots=True)
class Pending:
    """Charges of a request that has not ended."""

    since: float
    charges: list[tuple[str, UsageEvent]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReplicaEntry:
    """A source's last word."""

    statement: StageReport
    last_heard: float


class Ledger:
    """Not for several threads. `now` is Unix time."""

    def __init__(self, now: Callable[[], float] = time.time):
        self._now = now
        self.since = now()
        self.ever = Period()
        self._minutes: OrderedDict[int, Period] = OrderedDict()
        self._entries: OrderedDict[str, LedgerEntry] = OrderedDict()
        self._done: deque[LedgerEntry] = deque(maxlen=REQUESTS_KEPT)
        self._pending: dict[str, Pending] = {}
        self._next_number: dict[str, int] = {}
        self._replicas: dict[str, ReplicaEntry] = {}
        self._gone: dict[str, ReplicaEntry] = {}
        self._buried = -BURY_SECONDS

    def post(self, statement: UsageReport) -> None:
        """Enter a statement; one that was entered before is left alone."""
        if statement.number < self._next_number.get(statement.source, 0):
            return
        self._next_number[statement.source] = statement.number + 1
        if isinstance(statement, GatewayReport):
            for record in statement.records:
                self._close(record)
        else:
            self._hear(statement)

    @property
    def now(self) -> float:
        return self._now()

    def replicas(self, stage: str) -> list[ReplicaEntry]:
        """Those of a stage that are alive."""
        self._bury()
        return [replica for replica in self._replicas.values() if replica.statement.stage == stage]

    def status(self) -> Mapping[str, StageStatus | None]:
        """What the replica of each stage says that was heard last; None where none is alive."""
        latest = {
            stage: max(self.replicas(stage), key=lambda replica: replica.last_heard, default=None)
            for stage in STAGES
        }
        return {stage: replica.statement.status if replica else None for stage, replica in latest.items()}

    def began(self, seconds: float | None = None) -> float:
        """When the period of the last `seconds` began that can be told of: with a whole minute; for None, when the ledger did."""
        if seconds is None:
            return self.since
        now = self._now()
        minute = max((now - seconds) // MINUTE, now // MINUTE - MINUTES_KEPT + 1)
        return max(self.since, minute * MINUTE)

    def period(self, seconds: float | None = None) -> Period:
        """All since `began`."""
        if seconds is None:
            return self.ever
        total, first = Period(), int(self.began(seconds) // MINUTE)
        for minute, period in self._minutes.items():
            if minute >= first:
                total.add(period)
        return total

    def done(self, seconds: float | None = None) -> list[LedgerEntry]:
        """The requests that were answered with images since `began`, of those that are remembered."""
        began = 0.0 if seconds is None else self.began(seconds)
        return [entry for entry in self._done if entry.record.ended >= began]

    def latest(self, number: int) -> list[LedgerEntry]:
        """The requests that ended last, the newest first."""
        return [entry for entry, _ in zip(reversed(self._entries.values()), range(number), strict=False)]

    def pending_seconds(self, stage: str) -> float:
        """Charged by a stage for requests that have not ended."""
        return sum(
            charge.device_seconds
            for pending in self._pending.values()
            for by, charge in pending.charges
            if by == stage
        )

    def open_seconds(self, stage: str) -> float:
        """UsageAmounts by a stage on images that it still has."""
        return sum(replica.statement.totals.open for replica in self.replicas(stage))

    def _periods(self) -> Iterator[Period]:
        """Where whatever happens now is entered."""
        minute = int(self._now() // MINUTE)
        if minute not in self._minutes:
            self._minutes[minute] = Period()
            while len(self._minutes) > MINUTES_KEPT:
                self._minutes.popitem(last=False)
        yield self.ever
        yield self._minutes[minute]

    def _close(self, record: UsageRecord) -> None:
        if record.record_id in self._entries:
            return
        entry = LedgerEntry(replace(record, images=()), len(record.images))
        self._entries[record.record_id] = entry
        if record.is_done:
            self._done.append(entry)
        for period in self._periods():
            tally = period.accounts[record.key, record.model]
            tally.requests[record.outcome] += 1
            tally.images += entry.images
            if not record.is_done:
                tally.codes[record.code] += 1
        if pending := self._pending.pop(record.record_id, None):
            for stage, charge in pending.charges:
                self._charge(entry, stage, charge)
        while len(self._entries) > REQUESTS_KEPT:
            self._entries.popitem(last=False)

    def _hear(self, statement: StageReport) -> None:
        now, before = self._now(), self._replicas.get(statement.source) or self._raised(statement.source)
        self._replicas[statement.source] = ReplicaEntry(statement, now)
        known = (
            before.statement.totals
            if before
            else StageTotals()
            if statement.number == 0
            else _unheard(statement)
        )
        for period in self._periods():
            busy = period.stages[statement.stage]
            busy.alive += now - before.last_heard if before else 0.0
            busy.busy += statement.totals.busy - known.busy
            busy.starting += statement.totals.starting - known.starting
            busy.lost += statement.totals.lost - known.lost
            busy.ticks += statement.totals.ticks - known.ticks
        for charge in statement.charges:
            self._enter(statement.stage, charge)
        self._bury()

    def _enter(self, stage: str, charge: UsageEvent) -> None:
        if not charge.record_id:
            for period in self._periods():
                period.stages[stage].warm_up += charge.device_seconds
        elif (entry := self._entries.get(charge.record_id)) is not None:
            self._charge(entry, stage, charge)
        else:
            self._pending.setdefault(charge.record_id, Pending(self._now())).charges.append((stage, charge))

    def _charge(self, entry: LedgerEntry, stage: str, charge: UsageEvent) -> None:
        entry.spent[stage].add(charge)
        for period in self._periods():
            period.accounts[entry.record.key, entry.record.model].spent[stage].add(charge)

    def _raised(self, source: str) -> ReplicaEntry | None:
        """A replica that was only silent: what it has is not lost."""
        if (replica := self._gone.pop(source, None)) is not None:
            self._lose(replica, -replica.statement.totals.open)
        return replica

    def _lose(self, replica: ReplicaEntry, seconds: float) -> None:
        for period in self._periods():
            period.stages[replica.statement.stage].lost += seconds

    def _bury(self) -> None:
        """What dead replicas and dead gateways have left behind is lost."""
        now = self._now()
        if (
            now < self._buried + BURY_SECONDS
        ):  # it looks at every replica and every request, and is asked for with every statement
            return
        self._buried = now
        for source, replica in list(self._gone.items()):
            if now - replica.last_heard > UNCLAIMED_SECONDS:
                del self._gone[source]
                self._next_number.pop(source, None)
        for source, replica in list(self._replicas.items()):
            if now - replica.last_heard > SILENT_SECONDS:
                self._gone[source] = self._replicas.pop(source)
                self._lose(replica, replica.statement.totals.open)
        for account, pending in list(self._pending.items()):
            if now - pending.since > UNCLAIMED_SECONDS:
                del self._pending[account]
                for stage, charge in pending.charges:
                    for period in self._periods():
                        period.stages[stage].lost += charge.device_seconds


def _unheard(statement: StageReport) -> StageTotals:
    """What a replica had done before its first statement here: that is in the books of a ledger that is gone."""
    told = statement.totals.open + sum(charge.device_seconds for charge in statement.charges)
    return replace(statement.totals, busy=statement.totals.busy - told)
