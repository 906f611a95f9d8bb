"""What `/v1/accounting` says: the ledger in build_report, against the targets and at a price."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, Field

from safelight.service.backend import STAGES
from safelight.service.settings import Settings
from safelight.service.usage.ledger import Ledger, LedgerEntry, Period, ReplicaEntry, Tally, UsageAmounts
from safelight.service.usage.records import RequestOutcome

HOUR = 3600.0


class Percentiles(BaseModel):
    p50: float | None
    p95: float | None
    p99: float | None


class StageAmounts(BaseModel):
    """What requests were charged by one stage."""

    device_seconds: float
    queue_seconds: float
    flops: int
    nfe: int
    rows: int
    tokens: int


class AccountTotals(BaseModel):
    """The requests of one key and model."""

    key: str
    model: str
    requests: dict[str, int]
    images: int
    stages: dict[str, StageAmounts]


class RequestReport(BaseModel):
    """One request's record. Charges come within some seconds of its end."""

    request_id: str
    key: str
    model: str
    outcome: str
    code: str
    images: int
    seconds: float
    ended: float
    stages: dict[str, StageAmounts]


class StageBalance(BaseModel):
    """Seconds of one stage's replicas, living and dead, since the ledger's start: `busy` is the sum of all that follows."""

    busy: float
    requests: float = Field(description="Charged to requests that have ended.")
    in_progress: float = Field(description="UsageAmounts on requests that have not.")
    warm_up: float
    starting: float = Field(description="Loading and measuring the network.")
    lost: float = Field(description="On images that died with their replica.")
    overhead: float = Field(description="The rest: everything between two pieces of charged work.")


class Balance(BaseModel):
    stages: dict[str, StageBalance]
    unattributed_share: float | None = Field(
        description="Of all busy seconds, those that no request pays for."
    )


class ReplicaReport(BaseModel):
    stage: str
    process: int
    thread: int
    busy_seconds: float
    work_left_seconds: float
    pictures: int


class Target(BaseModel):
    name: str
    wanted: float
    got: float | None
    met: bool | None
    by: float | None = Field(description="got / wanted - 1.")


class AccountingReport(BaseModel):
    since: float = Field(description="Unix time from which this ledger knows anything.")
    now: float
    window_seconds: float = Field(
        description="What is summed up here: what was asked for, and up to a minute more: minutes are whole."
    )
    requests: dict[str, int]
    refusals: dict[str, int] = Field(description="By reason, and failures and aborts as well.")
    images: int
    images_per_hour: float
    devices: int = Field(description="Living replicas of the denoiser.")
    images_per_hour_per_device: float | None = Field(
        description="Of the window, for each hour that a replica of the denoiser lived in it."
    )
    images_per_busy_hour: float | None = Field(
        description="Images for an hour of work of all stages, their start left out: what a device can do."
    )
    latency_seconds: Percentiles
    queue_seconds: Percentiles
    nfe: int
    rows: int
    tokens: int
    flops: int
    device_seconds: dict[str, float]
    device_seconds_per_image: float | None
    mfu: float | None = Field(
        description="Of the denoiser while it works: operations a second over `peak_flops`."
    )
    peak_flops: float | None
    cost_per_1000_images: float | None = Field(description="Of busy device time, at the configured price.")
    currency_per_device_hour: float
    targets: list[Target]
    accounts: list[AccountTotals]
    balance: Balance
    replicas: list[ReplicaReport]
    latest: list[RequestReport]


def build_report(
    ledger: Ledger, settings: Settings, window: float | None = None, latest: int = 0
) -> AccountingReport:
    """All since the ledger's start, or of the last `window` seconds; with the `latest` so many requests."""
    seconds = max(ledger.now - ledger.began(window), 1e-9)
    period = ledger.period(window)
    total = _sum(period)
    done = ledger.done(window)
    living = {stage: ledger.replicas(stage) for stage in STAGES}
    alive = period.stages["denoise"].alive
    busy = sum(stage.busy for stage in period.stages.values())
    per_hour = HOUR * total.images / seconds
    working = busy - sum(stage.starting + stage.warm_up for stage in period.stages.values())
    per_busy_hour = HOUR * total.images / working if working > 0 else None
    latency = percentiles([entry.record.seconds for entry in done])
    peak = next(
        (
            replica.statement.status.peak_flops
            for replica in living["denoise"]
            if replica.statement.status.peak_flops
        ),
        None,
    )
    denoise = total.spent["denoise"]
    price = settings.price_per_device_hour
    return AccountingReport(
        since=ledger.since,
        now=ledger.now,
        window_seconds=seconds,
        requests={outcome.value: total.requests[outcome] for outcome in RequestOutcome},
        refusals=dict(total.codes),
        images=total.images,
        images_per_hour=per_hour,
        devices=len(living["denoise"]),
        images_per_hour_per_device=HOUR * total.images / alive if alive else None,
        images_per_busy_hour=per_busy_hour,
        latency_seconds=latency,
        queue_seconds=percentiles(
            [sum(spent.queue_seconds for spent in entry.spent.values()) for entry in done]
        ),
        nfe=denoise.nfe,
        rows=denoise.rows,
        tokens=denoise.tokens,
        flops=sum(spent.flops for spent in total.spent.values()),
        device_seconds={stage: spent.device_seconds for stage, spent in total.spent.items()},
        device_seconds_per_image=busy / total.images if total.images else None,
        mfu=denoise.flops / denoise.device_seconds / peak if peak and denoise.device_seconds else None,
        peak_flops=peak,
        cost_per_1000_images=1000.0 * price * busy / HOUR / total.images if price and total.images else None,
        currency_per_device_hour=price,
        targets=[
            _target("p95_latency_seconds", settings.target_latency_seconds, latency.p95, at_most=True),
            _target("images_per_busy_hour", settings.target_images_per_hour, per_busy_hour, at_most=False),
        ],
        accounts=[
            AccountTotals(
                key=key,
                model=model,
                requests={outcome.value: tally.requests[outcome] for outcome in RequestOutcome},
                images=tally.images,
                stages=_stages(tally.spent),
            )
            for (key, model), tally in sorted(period.accounts.items())
        ],
        balance=balance(ledger),
        replicas=[_replica(replica) for replicas in living.values() for replica in replicas],
        latest=[_request(entry) for entry in ledger.latest(latest)],
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """By the nearest rank; None of nothing."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None

    return Percentiles(p50=at(0.50), p95=at(0.95), p99=at(0.99))


def _sum(period: Period) -> Tally:
    total = Tally()
    for tally in period.accounts.values():
        total.add(tally)
    return total


def balance(ledger: Ledger) -> Balance:
    """Where every busy second of each stage went, since the ledger's start."""
    charged = _sum(ledger.ever).spent
    stages = {}
    for stage, busy in ledger.ever.stages.items():
        requests, in_progress = (
            charged[stage].device_seconds,
            ledger.pending_seconds(stage) + ledger.open_seconds(stage),
        )
        rest = busy.busy - requests - in_progress - busy.warm_up - busy.starting - busy.lost
        stages[stage] = StageBalance(
            busy=busy.busy,
            requests=requests,
            in_progress=in_progress,
            warm_up=busy.warm_up,
            starting=busy.starting,
            lost=busy.lost,
            overhead=rest,
        )
    whole = sum(stage.busy for stage in stages.values())
    paid = sum(stage.requests + stage.in_progress for stage in stages.values())
    return Balance(stages=stages, unattributed_share=1.0 - paid / whole if whole else None)


def _target(name: str, wanted: float, got: float | None, at_most: bool) -> Target:
    met = None if got is None else got <= wanted if at_most else got >= wanted
    return Target(name=name, wanted=wanted, got=got, met=met, by=None if got is None else got / wanted - 1.0)


def _stages(spent: dict[str, UsageAmounts]) -> dict[str, StageAmounts]:
    return {
        stage: StageAmounts(
            device_seconds=each.device_seconds,
            queue_seconds=each.queue_seconds,
            flops=each.flops,
            nfe=each.nfe,
            rows=each.rows,
            tokens=each.tokens,
        )
        for stage, each in spent.items()
    }


def _replica(replica: ReplicaEntry) -> ReplicaReport:
    statement = replica.statement
    return ReplicaReport(
        stage=statement.stage,
        process=statement.process,
        thread=statement.thread,
        busy_seconds=statement.totals.busy,
        work_left_seconds=statement.totals.work_left,
        pictures=statement.status.images,
    )


def _request(entry: LedgerEntry) -> RequestReport:
    record = entry.record
    return RequestReport(
        request_id=record.request_id,
        key=record.key,
        model=record.model,
        outcome=record.outcome.value,
        code=record.code,
        images=entry.images,
        seconds=record.seconds,
        ended=record.ended,
        stages=_stages(entry.spent),
    )
