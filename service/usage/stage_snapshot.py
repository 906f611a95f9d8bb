"""What the ledger knows of the stages, as the metrics say it: all replicas together."""

from dataclasses import dataclass, fields

from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import StageBalance, balance

SUMMED = ("images", "running", "waiting", "ticks", "rows", "cache_hits", "cache_misses")


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One stage."""

    replicas: int  # alive
    status: StageStatus  # of those together; of what cannot be summed, one's
    work_left: float  # device-seconds
    balance: StageBalance
    ticks: TickHistogramData


Snapshot = dict[str, StageSnapshot]


def snapshot(ledger: Ledger) -> Snapshot:
    """By stage."""
    balances = balance(ledger).stages
    return {stage: _stage(ledger, stage, balances[stage]) for stage in STAGES}


def _stage(ledger: Ledger, stage: str, balance: StageBalance) -> StageSnapshot:
    statements = [replica.statement for replica in ledger.replicas(stage)]
    return StageSnapshot(
        replicas=len(statements),
        status=_together([statement.status for statement in statements]),
        work_left=sum(statement.totals.work_left for statement in statements),
        balance=balance,
        ticks=ledger.ever.stages[stage].ticks,
    )


def _together(statuses: list[StageStatus]) -> StageStatus:
    """Sums, and of the rest what the first says."""
    if not statuses:
        return StageStatus()
    rest = {
        field.name: getattr(statuses[0], field.name)
        for field in fields(StageStatus)
        if field.name not in SUMMED
    }
    return StageStatus(**{name: sum(getattr(status, name) for status in statuses) for name in SUMMED}, **rest)
