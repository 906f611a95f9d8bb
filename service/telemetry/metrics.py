"""Every metric of the service: names, labels and buckets, in the tables `OF_REQUESTS` and `OF_STAGES`.

Each gateway counts its own requests; of the stages every gateway says the same, what the ledger knows of all their replicas. No
request id, prompt or key is ever a label: `/v1/accounting` knows those.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from safelight.service.messages import ImageUsage, StageStatus
from safelight.service.usage.histograms import HistogramData
from safelight.service.usage.records import UsageRecord
from safelight.service.usage.stage_snapshot import Snapshot, StageSnapshot

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)

OF_REQUESTS = {
    "safelight_requests_total": (
        "counter",
        ("outcome", "code"),
        "Image requests, by how they left; of those refused or failed, why.",
    ),
    "safelight_request_seconds": ("histogram", ("outcome",), "From arrival to answer."),
    "safelight_queue_seconds": ("histogram", (), "An image's waiting in all queues."),
    "safelight_images_total": ("counter", (), "Images drawn and sent."),
    "safelight_nfe_total": ("counter", (), "Network evaluations of images sent."),
    "safelight_rows_total": ("counter", (), "Network rows of images sent."),
    "safelight_tokens_total": ("counter", (), "Image tokens of images sent, over all their rows."),
    "safelight_flops_total": ("counter", ("stage",), "Floating-point operations of images sent."),
    "safelight_device_seconds_total": ("counter", ("stage",), "Device time of images sent."),
    "safelight_resent_total": ("counter", (), "Images sent a second time because their replica was lost."),
    "safelight_images_in_flight": ("gauge", (), "Images asked for and not yet answered."),
    "safelight_stage_up": ("gauge", ("stage",), "1 when the stage answers."),
    "safelight_attention": ("gauge", ("backend",), "1 for the denoiser's attention back end."),
    "safelight_tick_slowness": ("gauge", (), "Tick time over what was measured at start."),
    "safelight_mfu": (
        "gauge",
        (),
        "The denoiser's operations a second of its ticks over its device's peak, since the start.",
    ),
}


@dataclass(frozen=True, slots=True)
class StageMetric:
    """A gauge or a growing total with the label `stage`."""

    name: str
    kind: str
    help: str
    value: Callable[[StageSnapshot], float]


OF_STAGES = (
    StageMetric("safelight_stage_replicas", "gauge", "Replicas that are alive.", lambda m: m.replicas),
    StageMetric(
        "safelight_stage_work_left_seconds",
        "gauge",
        "Device-seconds of work that is there.",
        lambda m: m.work_left,
    ),
    StageMetric(
        "safelight_stage_running", "gauge", "Images in the running batch.", lambda m: m.status.running
    ),
    StageMetric(
        "safelight_stage_waiting", "gauge", "Images waiting for the batch.", lambda m: m.status.waiting
    ),
    StageMetric(
        "safelight_stage_images",
        "gauge",
        "Images finished by the replicas that are alive.",
        lambda m: m.status.images,
    ),
    StageMetric(
        "safelight_stage_ticks", "gauge", "Ticks of the replicas that are alive.", lambda m: m.status.ticks
    ),
    StageMetric(
        "safelight_stage_rows", "gauge", "Network rows over all these ticks.", lambda m: m.status.rows
    ),
    StageMetric(
        "safelight_stage_cache_hits", "gauge", "Texts answered from the cache.", lambda m: m.status.cache_hits
    ),
    StageMetric(
        "safelight_stage_cache_misses",
        "gauge",
        "Texts that had to be encoded.",
        lambda m: m.status.cache_misses,
    ),
    StageMetric(
        "safelight_stage_busy_seconds_total", "counter", "Replicas at work.", lambda m: m.balance.busy
    ),
    StageMetric(
        "safelight_stage_charged_seconds_total",
        "counter",
        "Of these, charged to requests.",
        lambda m: m.balance.requests,
    ),
)
UNATTRIBUTED = ("warm_up", "starting", "lost", "overhead")
TICKS = {
    "safelight_tick_seconds": ("How long a tick takes.", lambda m: m.ticks.seconds),
    "safelight_tick_rows": ("Network rows of a tick.", lambda m: m.ticks.rows),
    "safelight_tick_tokens": ("Image tokens of a tick, over all its rows.", lambda m: m.ticks.tokens),
    "safelight_tick_forecast_ratio": (
        "A tick's seconds over what the cost curve told.",
        lambda m: m.ticks.forecast,
    ),
}  # type: dict[str, tuple[str, Callable[[StageSnapshot], HistogramData]]]


class Metrics:
    """The gateway's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = StageCollector()
        self.registry.register(self._stages)
        self._requests = self._counter("safelight_requests_total")
        self._seconds = self._histogram("safelight_request_seconds")
        self._queue = self._histogram("safelight_queue_seconds")
        self._images = self._counter("safelight_images_total")
        self._nfe = self._counter("safelight_nfe_total")
        self._rows = self._counter("safelight_rows_total")
        self._tokens = self._counter("safelight_tokens_total")
        self._flops = self._counter("safelight_flops_total")
        self._device = self._counter("safelight_device_seconds_total")
        self._resent = self._counter("safelight_resent_total")
        self._in_flight = self._gauge("safelight_images_in_flight")
        self._up = self._gauge("safelight_stage_up")
        self._attention = self._gauge("safelight_attention")
        self._slowness = self._gauge("safelight_tick_slowness")
        self._mfu = self._gauge("safelight_mfu")

    def record(self, record: UsageRecord) -> None:
        """The accounts' sink."""
        self._requests.labels(record.outcome.value, record.code).inc()
        self._seconds.labels(record.outcome.value).observe(record.seconds)
        for usage in record.images:
            self._record_image(usage)

    def count_resent(self) -> None:
        self._resent.inc()

    def set_in_flight(self, num_images: int) -> None:
        self._in_flight.set(num_images)

    def observe_stages(self, stages: Mapping[str, StageStatus | None]) -> None:
        """What stages said when they were asked just now."""
        self._stages.asked = stages
        for stage, status in stages.items():
            self._up.labels(stage).set(status is not None)
            if status is not None and status.attention:
                self._attention.clear()
                self._attention.labels(status.attention).set(1)
            if stage == "denoise" and status is not None and status.curve:
                self._slowness.set(status.curve.slowdown)

    def observe_measures(self, measures: Snapshot, mfu: float | None) -> None:
        """What the ledger knows of all replicas."""
        self._stages.measures = measures
        self._mfu.set(mfu if mfu is not None else float("nan"))

    def expose(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str) -> Counter:
        _, labels, text = OF_REQUESTS[name]
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        _, labels, text = OF_REQUESTS[name]
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        _, labels, text = OF_REQUESTS[name]
        return Histogram(name, text, labels, buckets=SECONDS, registry=self.registry)

    def _record_image(self, usage: ImageUsage) -> None:
        self._images.inc()
        self._nfe.inc(usage.denoise.nfe)
        self._rows.inc(usage.denoise.rows)
        self._tokens.inc(usage.denoise.tokens)
        self._queue.observe(usage.queue_seconds)
        for stage, cost in usage.stages.items():
            self._device.labels(stage).inc(cost.device_seconds)
            self._flops.labels(stage).inc(cost.flops)


class StageCollector(Collector):
    """The stages' metrics, made of what is known when they are asked for."""

    def __init__(self) -> None:
        self.measures: Snapshot = {}
        self.asked: Mapping[str, StageStatus | None] = {}

    def collect(self) -> Iterator[Metric]:
        known = {stage: self._freshest(stage, measures) for stage, measures in self.measures.items()}
        for metric in OF_STAGES:
            family = _family(metric)
            for stage, measures in known.items():
                family.add_metric([stage], metric.value(measures))
            yield family
        unattributed = GaugeMetricFamily(
            "safelight_unattributed_seconds",
            "Busy seconds that no request pays for.",
            labels=["stage", "reason"],
        )
        for stage, measures in known.items():
            for reason in UNATTRIBUTED:
                unattributed.add_metric([stage, reason], max(0.0, getattr(measures.balance, reason)))
        yield unattributed
        if "denoise" in known:
            for name, (text, counts) in TICKS.items():
                histogram = HistogramMetricFamily(name, text)
                _fill(histogram, counts(known["denoise"]))
                yield histogram

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is known yet when this is registered

    def _freshest(self, stage: str, measures: StageSnapshot) -> StageSnapshot:
        """A single replica is asked itself: the ledger knows it as it was a second ago."""
        asked = self.asked.get(stage)
        if asked is None or measures.replicas > 1:
            return measures
        return StageSnapshot(measures.replicas, asked, measures.work_left, measures.balance, measures.ticks)


def _family(metric: StageMetric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=["stage"])


def _fill(histogram: HistogramMetricFamily, counts: HistogramData) -> None:
    bounds = [*(str(bound) for bound in counts.bounds), "+Inf"]
    histogram.add_metric([], list(zip(bounds, accumulate(counts.counts), strict=True)), counts.total)
