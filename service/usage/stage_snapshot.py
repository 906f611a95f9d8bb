"""What the ledger knows of the stages, as the metrics say it: all replicas together."""

from dataclasses import dataclass, fields

from safelight.service.backend import STAGES
from safelight.service.messages import StageCensus
from safelight.service.usage.histograms import TickCounts
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import StageBalance, balance

SUMMED = ("images", "running", "waiting", "ticks", "rows", "cache_hits", "cache_misses")


@dataclass(frozen=True, slots=True)
class StageMeasures:
    """One stage."""

    replicas: int  # alive
    census: StageCensus  # of those together; of what cannot be summed, one's
    work_left: float  # device-seconds
    balance: StageBalance
    ticks: TickCounts


Measures = dict[str, StageMeasures]


def measures(ledger: Ledger) -> Measures:
    """By stage."""
    balances = balance(ledger).stages
    return {stage: _stage(ledger, stage, balances[stage]) for stage in STAGES}


def _stage(ledger: Ledger, stage: str, balance: StageBalance) -> StageMeasures:
    statements = [replica.statement for replica in ledger.replicas(stage)]
    return StageMeasures(
        replicas=len(statements),
        census=_together([statement.census for statement in statements]),
        work_left=sum(statement.totals.work_left for statement in statements),
        balance=balance,
        ticks=ledger.ever.stages[stage].ticks,
    )


def _together(censuses: list[StageCensus]) -> StageCensus:
    """Sums, and of the rest what the first says."""
    if not censuses:
        return StageCensus()
    rest = {
        field.name: getattr(censuses[0], field.name)
        for field in fields(StageCensus)
        if field.name not in SUMMED
    }
    return StageCensus(**{name: sum(getattr(census, name) for census in censuses) for name in SUMMED}, **rest)
