"""Every metric of the service: names, labels, help texts and buckets, in tables.

Each gateway counts its own requests. The metrics of stages are the same at every gateway: they come from the
ledger, which knows all replicas. No label holds a request id, a prompt or a key; single requests are in
`/v1/accounting`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)  # seconds


@dataclass(frozen=True, slots=True)
class GatewayMetric:
    """A metric that a gateway counts or sets itself."""

    name: str
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class StageMetric:
    """A counter or gauge with the label `stage`, read from the snapshot of a stage."""

    name: str
    kind: str  # counter or gauge
    help: str
    value: Callable[[StageSnapshot], float]


@dataclass(frozen=True, slots=True)
class TickMetric:
    """A histogram of the denoiser's ticks, read from its snapshot."""

    name: str
    help: str
    histogram: Callable[[StageSnapshot], HistogramData]


GATEWAY_METRICS = (
    GatewayMetric(
        "safelight_requests_total",
        "counter",
        ("outcome", "code"),
        "Image requests by outcome and error code.",
    ),
    GatewayMetric(
        "safelight_request_duration_seconds",
        "histogram",
        ("outcome",),
        "Seconds from a request's arrival to its answer.",
    ),
    GatewayMetric("safelight_images_total", "counter", (), "Images sent."),
    GatewayMetric("safelight_images_in_flight", "gauge", (), "Images requested and not yet answered."),
    GatewayMetric(
        "safelight_images_retried_total",
        "counter",
        (),
        "Images generated a second time because their replica was lost.",
    ),
    GatewayMetric(
        "safelight_image_queue_seconds",
        "histogram",
        (),
        "Seconds that an image waited in all queues.",
    ),
    GatewayMetric("safelight_image_nfe_total", "counter", (), "Network evaluations of the images sent."),
    GatewayMetric("safelight_image_rows_total", "counter", (), "Network rows of the images sent."),
    GatewayMetric(
        "safelight_image_tokens_total", "counter", (), "Image tokens in all rows of the images sent."
    ),
    GatewayMetric(
        "safelight_image_flops_total", "counter", ("stage",), "Floating-point operations of the images sent."
    ),
    GatewayMetric(
        "safelight_image_device_seconds_total", "counter", ("stage",), "Device seconds of the images sent."
    ),
    GatewayMetric(
        "safelight_image_store_seconds_total", "counter", (), "Seconds of waiting for the image store."
    ),
    GatewayMetric("safelight_image_store_bytes_total", "counter", (), "Bytes of the images stored."),
    GatewayMetric("safelight_stage_up", "gauge", ("stage",), "1 if the stage answers, else 0."),
    GatewayMetric(
        "safelight_attention_info", "gauge", ("backend",), "1 for the denoiser's attention back end."
    ),
    GatewayMetric(
        "safelight_tick_slowdown_ratio", "gauge", (), "Seconds of a tick over those measured at the start."
    ),
    GatewayMetric(
        "safelight_mfu_ratio",
        "gauge",
        (),
        "FLOP/s of the denoiser's ticks over the peak of its device, since the start.",
    ),
)
STAGE_METRICS = (
    StageMetric("safelight_stage_replicas", "gauge", "Living replicas.", lambda s: s.replicas),
    StageMetric(
        "safelight_stage_work_left_seconds",
        "gauge",
        "Device seconds that the images in the stage still need.",
        lambda s: s.work_left,
    ),
    StageMetric(
        "safelight_stage_images_running", "gauge", "Images in the running batch.", lambda s: s.status.running
    ),
    StageMetric(
        "safelight_stage_images_waiting",
        "gauge",
        "Images waiting for the batch.",
        lambda s: s.status.waiting,
    ),
    StageMetric(
        "safelight_stage_images_finished",
        "gauge",
        "Images finished by the living replicas.",
        lambda s: s.status.images,
    ),
    StageMetric(
        "safelight_stage_previews",
        "gauge",
        "Previews decoded by the living replicas.",
        lambda s: s.status.previews,
    ),
    StageMetric("safelight_stage_ticks", "gauge", "Ticks of the living replicas.", lambda s: s.status.ticks),
    StageMetric(
        "safelight_stage_rows",
        "gauge",
        "Network rows in ticks of the living replicas.",
        lambda s: s.status.rows,
    ),
    StageMetric(
        "safelight_stage_cache_hits", "gauge", "Texts taken from the cache.", lambda s: s.status.cache_hits
    ),
    StageMetric(
        "safelight_stage_cache_misses",
        "gauge",
        "Texts that were not in the cache and were encoded.",
        lambda s: s.status.cache_misses,
    ),
    StageMetric(
        "safelight_stage_busy_seconds_total",
        "counter",
        "Busy seconds of all replicas.",
        lambda s: s.balance.busy,
    ),
    StageMetric(
        "safelight_stage_attributed_seconds_total",
        "counter",
        "Busy seconds that were attributed to requests that have ended.",
        lambda s: s.balance.requests,
    ),
)
UNATTRIBUTED_METRIC = GatewayMetric(
    "safelight_stage_unattributed_seconds",
    "gauge",
    ("stage", "reason"),
    "Busy seconds that belong to no request, by reason.",
)
UNATTRIBUTED_REASONS = ("warm_up", "starting", "lost", "overhead")
TICK_METRICS = (
    TickMetric("safelight_tick_duration_seconds", "Seconds of a tick.", lambda s: s.ticks.seconds),
    TickMetric("safelight_tick_rows", "Network rows of a tick.", lambda s: s.ticks.rows),
    TickMetric("safelight_tick_tokens", "Image tokens in all rows of a tick.", lambda s: s.ticks.tokens),
    TickMetric(
        "safelight_tick_forecast_ratio",
        "Seconds of a tick over the cost curve's forecast.",
        lambda s: s.ticks.forecast,
    ),
)


class Metrics:
    """The metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = StageCollector()
        self.registry.register(self._stages)
        self._specs = {metric.name: metric for metric in GATEWAY_METRICS}
        self._requests = self._counter("safelight_requests_total")
        self._duration = self._histogram("safelight_request_duration_seconds")
        self._images = self._counter("safelight_images_total")
        self._in_flight = self._gauge("safelight_images_in_flight")
        self._retried = self._counter("safelight_images_retried_total")
        self._queue = self._histogram("safelight_image_queue_seconds")
        self._nfe = self._counter("safelight_image_nfe_total")
        self._rows = self._counter("safelight_image_rows_total")
        self._tokens = self._counter("safelight_image_tokens_total")
        self._flops = self._counter("safelight_image_flops_total")
        self._device = self._counter("safelight_image_device_seconds_total")
        self._store_seconds = self._counter("safelight_image_store_seconds_total")
        self._store_bytes = self._counter("safelight_image_store_bytes_total")
        self._up = self._gauge("safelight_stage_up")
        self._attention = self._gauge("safelight_attention_info")
        self._slowdown = self._gauge("safelight_tick_slowdown_ratio")
        self._mfu = self._gauge("safelight_mfu_ratio")

    def record(self, record: UsageRecord) -> None:
        """Count a request that has ended, and the usage of its images."""
        self._requests.labels(record.outcome.value, record.code).inc()
        self._duration.labels(record.outcome.value).observe(record.seconds)
        self._store_seconds.inc(record.store.seconds)
        self._store_bytes.inc(record.store.num_bytes)
        for usage in record.image_usages:
            self._record_image(usage)

    def count_retry(self) -> None:
        self._retried.inc()

    def set_in_flight(self, num_images: int) -> None:
        self._in_flight.set(num_images)

    def observe_status(self, stages: Mapping[str, StageStatus | None]) -> None:
        """Set the metrics of the stages' status; None for a stage that did not answer."""
        self._stages.status = stages
        for stage, status in stages.items():
            self._up.labels(stage).set(status is not None)
            if status is not None and status.attention:
                self._attention.clear()
                self._attention.labels(status.attention).set(1)
            if stage == "denoise" and status is not None and status.curve:
                self._slowdown.set(status.curve.slowdown)

    def observe_snapshot(self, snapshot: Snapshot, mfu: float | None) -> None:
        """Set the ledger's snapshot of all replicas, and the denoiser's MFU (None if it is unknown)."""
        self._stages.snapshot = snapshot
        self._mfu.set(mfu if mfu is not None else float("nan"))

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str) -> Counter:
        spec = self._specs[name]
        return Counter(name, spec.help, spec.labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        spec = self._specs[name]
        return Gauge(name, spec.help, spec.labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        spec = self._specs[name]
        return Histogram(name, spec.help, spec.labels, buckets=BUCKETS, registry=self.registry)

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
    """Computes the stages' metrics from the latest snapshot and status at every scrape."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self.status: Mapping[str, StageStatus | None] = {}

    def collect(self) -> Iterator[Metric]:
        stages = {stage: self._freshest(stage, snapshot) for stage, snapshot in self.snapshot.items()}
        for metric in STAGE_METRICS:
            family = _family(metric)
            for stage, snapshot in stages.items():
                family.add_metric([stage], metric.value(snapshot))
            yield family
        yield _unattributed(stages)
        if "denoise" in stages:
            for tick_metric in TICK_METRICS:
                histogram = HistogramMetricFamily(tick_metric.name, tick_metric.help)
                _fill(histogram, tick_metric.histogram(stages["denoise"]))
                yield histogram

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry asks at registration, when there is no snapshot yet

    def _freshest(self, stage: str, snapshot: StageSnapshot) -> StageSnapshot:
        """The snapshot; for a single replica with its own answer, because the ledger's is a second old."""
        status = self.status.get(stage)
        if status is None or snapshot.replicas > 1:
            return snapshot
        return replace(snapshot, status=status)


def _family(metric: StageMetric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=["stage"])


def _unattributed(stages: Snapshot) -> GaugeMetricFamily:
    spec = UNATTRIBUTED_METRIC
    family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for stage, snapshot in stages.items():
        for reason in UNATTRIBUTED_REASONS:
            family.add_metric([stage, reason], max(0.0, getattr(snapshot.balance, reason)))
    return family


def _fill(histogram: HistogramMetricFamily, data: HistogramData) -> None:
    bounds = [*(str(bound) for bound in data.bounds), "+Inf"]
    histogram.add_metric([], list(zip(bounds, accumulate(data.counts), strict=True)), data.total)
