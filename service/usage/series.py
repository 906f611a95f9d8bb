"""What the metrics count of the requests of one model: since the accounts began, of all gateways."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from safelight.pipeline.params import UsageAmounts
from safelight.service.backend import STAGES
from safelight.service.messages import ImageUsage
from safelight.service.usage.histograms import REQUEST_SECONDS, HistogramData
from safelight.service.usage.records import NOTHING_STORED, RequestOutcome, StoreUsage, UsageRecord


def _empty() -> HistogramData:
    return HistogramData.empty(REQUEST_SECONDS)


def _no_usage() -> dict[str, UsageAmounts]:
    return {stage: UsageAmounts() for stage in STAGES}


@dataclass(slots=True)
class RequestSeries:
    """The counts of one model. Its size depends on the number of error codes, and on nothing else."""

    requests: Counter[tuple[RequestOutcome, str]] = field(
        default_factory=Counter
    )  # by outcome and error code
    duration: dict[RequestOutcome, HistogramData] = field(default_factory=dict)  # seconds
    queue: HistogramData = field(default_factory=_empty)  # seconds of each image sent
    images: int = 0  # sent
    retried: int = 0  # images
    promised: int = 0  # requests that were let in with a promise, and ended with images
    kept: int = 0  # of these, those that were done in time
    sent: dict[str, UsageAmounts] = field(default_factory=_no_usage)  # of the images sent, by stage
    attributed: dict[str, UsageAmounts] = field(default_factory=_no_usage)  # of all requests that ended
    store: StoreUsage = NOTHING_STORED

    def add_record(self, record: UsageRecord) -> None:
        """Count a request that has ended, and the images that were sent."""
        self.requests[record.outcome, record.code] += 1
        self.duration[record.outcome] = self.duration.get(record.outcome, _empty()).with_value(record.seconds)
        self.store += record.store
        if record.promised_seconds is not None:
            self.promised += 1
            self.kept += record.is_kept
        for usage in record.image_usages:
            self.images += 1
            self.queue = self.queue.with_value(usage.queue_seconds)
            for stage, amounts in _amounts_of(usage).items():
                self.sent[stage] += amounts


def _amounts_of(usage: ImageUsage) -> dict[str, UsageAmounts]:
    amounts = {
        stage: UsageAmounts(cost.device_seconds, cost.queue_seconds, cost.flops)
        for stage, cost in usage.stages.items()
    }
    denoise = usage.denoise
    amounts["denoise"] += UsageAmounts(nfe=denoise.nfe, rows=denoise.rows, tokens=denoise.tokens)
    return amounts
