"""Snapshot of every stage for the metrics: what the ledger knows of all replicas together."""

from dataclasses import dataclass, fields

from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import balance
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


Snapshot = dict[str, StageSnapshot]  # by stage


def snapshot(ledger: Ledger) -> Snapshot:
    """The snapshot of every stage."""
    balances = balance(ledger).stages
    return {stage: _stage_snapshot(ledger, stage, balances[stage]) for stage in STAGES}


def _stage_snapshot(ledger: Ledger, stage: str, balance: StageBalance) -> StageSnapshot:
    reports = [replica.report for replica in ledger.replicas(stage)]
    return StageSnapshot(
        replicas=len(reports),
        status=_combine([report.status for report in reports]),
        work_left=sum(report.totals.work_left for report in reports),
        balance=balance,
        ticks=ledger.totals.stages[stage].ticks,
    )


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
