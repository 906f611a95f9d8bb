"""What is reported to the ledger, by whom: stages what they spent and for whom, gateways how requests ended. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from safelight.service.messages import StageStatus
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.records import UsageRecord


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What one stage spent on one image, whether or not it was finished."""

    record_id: str  # empty: nobody's
    device_seconds: float
    flops: int
    queue_seconds: float = 0.0
    nfe: int = 0
    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class StageTotals:
    """A replica's seconds since it started, the first three growing."""

    busy: float = 0.0  # its thread was not waiting for work; the rest are parts of this
    starting: float = 0.0  # loading and measuring the network
    lost: float = 0.0  # on images that died when the network failed
    open: float = 0.0  # on images that are still here, which are charged when they leave
    work_left: float = 0.0  # not spent yet: what those who are here will still take
    ticks: TickHistogramData = field(default_factory=TickHistogramData)  # of a denoiser


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a replica of a stage has to report since its last statement; totals since it started."""

    source: str  # one a replica's life
    number: int  # 0, 1, ...: a statement that comes twice is counted once
    stage: str
    charges: tuple[UsageEvent, ...]
    totals: StageTotals
    status: StageStatus
    process: int  # where its thread can be watched from outside
    thread: int


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """The requests that a gateway has answered since its last statement."""

    source: str
    number: int
    records: tuple[UsageRecord, ...]


UsageReport = StageReport | GatewayReport
