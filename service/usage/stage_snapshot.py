"""Snapshot of every stage for the metrics: what the ledger knows of all replicas together."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from safelight.service.messages import StageStatus
from safelight.service.usage.events import StageKey
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import stage_balances
from safelight.service.usage.report_schema import StageBalance

SUMMED_FIELDS = ("images", "previews", "running", "waiting", "ticks", "rows", "cache_hits", "cache_misses")


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One stage, its replicas taken together."""

    replicas: int  # alive
    status: StageStatus  # counts summed over these replicas, the other fields from the first
    work_left: float  # device seconds
    balance: StageBalance
    ticks: TickHistogramData
    attributed: Mapping[str, float]  # of the busy seconds, those of requests that have ended, by their model


Snapshot = dict[StageKey, StageSnapshot]


def snapshot(ledger: Ledger) -> Snapshot:
    """The snapshot of every stage."""
    return {key: _stage_snapshot(ledger, key, balance) for key, balance in stage_balances(ledger).items()}


def _stage_snapshot(ledger: Ledger, key: StageKey, balance: StageBalance) -> StageSnapshot:
    stage, model = key
    reports = [replica.report for replica in ledger.replicas(stage) if replica.report.key == key]
    return StageSnapshot(
        replicas=len(reports),
        status=_combine([report.status for report in reports]),
        work_left=sum(report.totals.work_left for report in reports),
        balance=balance,
        ticks=ledger.totals.stage_seconds(stage, model).ticks,
        attributed=_attributed(ledger, key),
    )


def _attributed(ledger: Ledger, key: StageKey) -> dict[str, float]:
    """Busy seconds of a stage by the model of the request; 0 for a model that had none yet."""
    stage, model = key
    served = [other for name, other in ledger.totals.stages if name == "denoise" and other]
    return {
        other: ledger.attributed(stage, other)
        for other in dict.fromkeys((*served, *ledger.series))
        if other and model in ("", other)
    }


def _combine(statuses: list[StageStatus]) -> StageStatus:
    """One status: `SUMMED_FIELDS` added up, the other fields from the first."""
    if not statuses:
        return StageStatus()
    first = {
        field.name: getattr(statuses[0], field.name)
        for field in fields(StageStatus)
        if field.name not in SUMMED_FIELDS
    }
    sums = {name: sum(getattr(status, name) for status in statuses) for name in SUMMED_FIELDS}
    return StageStatus(**sums, **first)
