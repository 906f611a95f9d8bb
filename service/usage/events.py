"""Reports to the ledger: stages report usage, gateways report how requests ended. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from safelight.pipeline.params import UsageAmounts
from safelight.service.messages import StageStatus
from safelight.service.usage.histograms import TickHistogramData
from safelight.service.usage.records import UsageRecord

StageKey = tuple[str, str]  # a stage, and the id of its model; empty: it may serve several models


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What one stage spent on one image, finished or not."""

    record_id: str  # of the request's usage record; empty for the warm-up image, which belongs to no request
    amounts: UsageAmounts


@dataclass(frozen=True, slots=True)
class StageTotals:
    """A replica's totals in seconds: the first three since it started, the next two at this moment."""

    busy: float = 0.0  # its thread was not waiting for work; `starting`, `lost` and `open` are parts of this
    starting: float = 0.0  # loading and measuring the network
    lost: float = 0.0  # spent on images that were dropped when the network failed
    open: float = 0.0  # spent on images still in the stage; a usage event follows when they leave
    work_left: float = 0.0  # device seconds that the images in the stage still need
    ticks: TickHistogramData = field(default_factory=TickHistogramData)  # of a denoiser, since it started


@dataclass(frozen=True, slots=True)
class StageReport:
    """A stage replica's usage events since its previous report, and its totals."""

    source: str  # unique for each replica
    number: int  # 0, 1, ...: the ledger ignores a number that it has recorded already
    stage: str
    events: tuple[UsageEvent, ...]
    totals: StageTotals
    status: StageStatus
    process: int  # process and thread ids, so that its CPU time can be measured from outside
    thread: int
    model: str = ""  # id of the model that a denoiser evaluates; empty: the stage may serve several

    @property
    def key(self) -> StageKey:
        return self.stage, self.model


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """The requests that a gateway has answered since its previous report, and its state at this moment."""

    source: str
    number: int
    records: tuple[UsageRecord, ...]
    retried: tuple[tuple[str, int], ...] = ()  # images that were sent again since then, by model
    in_flight: tuple[tuple[str, int], ...] = ()  # images, by model
    dropped: int = 0  # records since then for which there was no room, while the ledger took none


UsageReport = StageReport | GatewayReport
