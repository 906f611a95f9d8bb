"""The sums and open items of which the ledger consists."""

from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field

from safelight.pipeline.params import UsageAmounts
from safelight.service.backend import STAGES
from safelight.service.usage.events import StageKey, StageReport, UsageEvent
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.records import NOTHING_STORED, RequestOutcome, StoreUsage, UsageRecord
from safelight.service.usage.series import RequestSeries


def _no_usage() -> dict[str, UsageAmounts]:
    return {stage: UsageAmounts() for stage in STAGES}


@dataclass(slots=True)
class RequestTotals:
    """The requests of one key and model in one period, added up."""

    requests: Counter[RequestOutcome] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # error codes of the requests that were not done
    images: int = 0  # sent
    usage: dict[str, UsageAmounts] = field(default_factory=_no_usage)  # by stage
    store: StoreUsage = NOTHING_STORED

    @property
    def device_seconds(self) -> float:
        """Of all stages."""
        return sum(amounts.device_seconds for amounts in self.usage.values())

    def add(self, other: "RequestTotals") -> None:
        self.requests += other.requests
        self.codes += other.codes
        self.images += other.images
        for stage, amounts in other.usage.items():
            self.usage[stage] += amounts
        self.store += other.store


@dataclass(slots=True)
class ReplicaSeconds:
    """Seconds of one stage's replicas in one period, including replicas that have died since."""

    alive: float = 0.0
    busy: float = 0.0
    starting: float = 0.0
    warm_up: float = 0.0  # usage events without a request
    lost: float = 0.0  # spent on images that were dropped with their replica, or whose gateway died
    ticks: TickHistogramData = field(default_factory=TickHistogramData)

    def add(self, other: "ReplicaSeconds") -> None:
        self.alive += other.alive
        self.busy += other.busy
        self.starting += other.starting
        self.warm_up += other.warm_up
        self.lost += other.lost
        self.ticks += other.ticks


@dataclass(slots=True)
class PeriodTotals:
    """All sums of one period."""

    accounts: defaultdict[tuple[str, str], RequestTotals] = field(
        default_factory=lambda: defaultdict(RequestTotals)
    )  # by key and model
    stages: defaultdict[StageKey, ReplicaSeconds] = field(default_factory=lambda: defaultdict(ReplicaSeconds))

    def add(self, other: "PeriodTotals") -> None:
        for account, totals in other.accounts.items():
            self.accounts[account].add(totals)
        for key, seconds in other.stages.items():
            self.stages[key].add(seconds)

    def all_requests(self, model: str = "") -> RequestTotals:
        """The requests of all keys together, for `model` or, without one, for all models."""
        total = RequestTotals()
        for (_, other), totals in self.accounts.items():
            if model in ("", other):
                total.add(totals)
        return total

    def stage_seconds(self, stage: str, model: str = "") -> ReplicaSeconds:
        """The seconds of a stage's replicas for `model` or, without one, of all of them."""
        total = ReplicaSeconds()
        for (name, other), seconds in self.stages.items():
            if name == stage and model in ("", other):
                total.add(seconds)
        return total


@dataclass(slots=True)
class LedgerEntry:
    """One request that has ended, and the usage reported for it so far."""

    record: UsageRecord  # without its images
    images: int  # sent
    usage: dict[str, UsageAmounts] = field(default_factory=_no_usage)  # by stage


@dataclass(slots=True)
class PendingUsage:
    """Usage events of a request whose record has not arrived."""

    since: float  # Unix time of the first event
    events: list[tuple[StageKey, UsageEvent]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReplicaEntry:
    """The latest report of a stage's replica."""

    report: StageReport
    received: float  # Unix time


@dataclass(frozen=True, slots=True)
class GatewayEntry:
    """The latest report of a gateway."""

    in_flight: tuple[tuple[str, int], ...]  # images, by model
    received: float  # Unix time


@dataclass(slots=True)
class LedgerState:
    """Everything that a ledger knows and a restart must not forget."""

    since: float  # Unix time at which the accounts began
    totals: PeriodTotals = field(default_factory=PeriodTotals)  # since then
    minutes: OrderedDict[int, PeriodTotals] = field(default_factory=OrderedDict)
    entries: OrderedDict[str, LedgerEntry] = field(default_factory=OrderedDict)  # by record id, oldest first
    pending: dict[str, PendingUsage] = field(default_factory=dict)  # by record id
    series: defaultdict[str, RequestSeries] = field(default_factory=lambda: defaultdict(RequestSeries))
    next_number: dict[str, int] = field(default_factory=dict)  # of a source's report
    replicas: dict[str, ReplicaEntry] = field(default_factory=dict)  # by source
    silent_replicas: dict[str, ReplicaEntry] = field(default_factory=dict)
    key_names: dict[str, str] = field(default_factory=dict)  # of the keys that requests came with, by id
    dropped: int = 0  # records for which gateways had no room
