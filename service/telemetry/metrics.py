"""Every metric of the service: names, labels, help texts and buckets, in tables.

Each gateway counts its own requests. The metrics of stages are the same at every gateway: they come from the
ledger, which knows all replicas. The label `model` holds ids of models that are or were served, never what a
client wrote. No label holds a request id, a prompt or a key; single requests are in `/v1/accounting`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from safelight.service.backend import STAGES
from safelight.service.messages import ImageUsage, StageStatus
from safelight.service.usage.events import StageKey
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
    """A counter or gauge with the labels `stage` and `model`, read from the snapshot of a stage."""

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
        ("outcome", "code", "model"),
        "Image requests by outcome and error code.",
    ),
    GatewayMetric(
        "safelight_request_duration_seconds",
        "histogram",
        ("outcome", "model"),
        "Seconds from a request's arrival to its answer.",
    ),
    GatewayMetric("safelight_images_total", "counter", ("model",), "Images sent."),
    GatewayMetric(
        "safelight_images_in_flight", "gauge", ("model",), "Images requested and not yet answered."
    ),
    GatewayMetric(
        "safelight_images_retried_total",
        "counter",
        ("model",),
        "Images generated a second time because their replica was lost.",
    ),
    GatewayMetric(
        "safelight_image_queue_seconds",
        "histogram",
        ("model",),
        "Seconds that an image waited in all queues.",
    ),
    GatewayMetric(
        "safelight_image_nfe_total", "counter", ("model",), "Network evaluations of the images sent."
    ),
    GatewayMetric("safelight_image_rows_total", "counter", ("model",), "Network rows of the images sent."),
    GatewayMetric(
        "safelight_image_tokens_total", "counter", ("model",), "Image tokens in all rows of the images sent."
    ),
    GatewayMetric(
        "safelight_image_flops_total",
        "counter",
        ("stage", "model"),
        "Floating-point operations of the images sent.",
    ),
    GatewayMetric(
        "safelight_image_device_seconds_total",
        "counter",
        ("stage", "model"),
        "Device seconds of the images sent.",
    ),
    GatewayMetric(
        "safelight_image_store_seconds_total",
        "counter",
        ("model",),
        "Seconds of waiting for the image store.",
    ),
    GatewayMetric("safelight_image_store_bytes_total", "counter", ("model",), "Bytes of the images stored."),
    GatewayMetric("safelight_stage_up", "gauge", ("stage", "model"), "1 if the stage answers, else 0."),
    GatewayMetric(
        "safelight_attention_info", "gauge", ("backend", "model"), "1 for the denoiser's attention back end."
    ),
    GatewayMetric(
        "safelight_tick_slowdown_ratio",
        "gauge",
        ("model",),
        "Seconds of a tick over those measured at the start.",
    ),
    GatewayMetric(
        "safelight_mfu_ratio",
        "gauge",
        ("model",),
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
)
ATTRIBUTED_METRIC = GatewayMetric(
    "safelight_stage_attributed_seconds_total",
    "counter",
    ("stage", "model"),
    "Busy seconds that were attributed to requests that have ended, by the model of the request.",
)
UNATTRIBUTED_METRIC = GatewayMetric(
    "safelight_stage_unattributed_seconds",
    "gauge",
    ("stage", "model", "reason"),
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
        self._requests.labels(record.outcome.value, record.code, record.model).inc()
        self._duration.labels(record.outcome.value, record.model).observe(record.seconds)
        self._store_seconds.labels(record.model).inc(record.store.seconds)
        self._store_bytes.labels(record.model).inc(record.store.num_bytes)
        for usage in record.image_usages:
            self._record_image(usage, record.model)

    def count_retry(self, model: str) -> None:
        self._retried.labels(model).inc()

    def set_in_flight(self, model: str, num_images: int) -> None:
        self._in_flight.labels(model).set(num_images)

    def serve(self, models: Sequence[str]) -> None:
        """Begin the series of `models`, and end those that tell the state of others."""
        for model in set(self._stages.status) - set(models):
            del self._stages.status[model]
            self._slowdown.remove(model)
            for stage in STAGES:
                self._up.remove(stage, model)
            self._attention.remove_by_labels({"model": model})
        for model in models:
            self._stages.status.setdefault(model, {})
            for counter in (self._images, self._retried, self._nfe, self._rows, self._tokens):
                counter.labels(model)
            for counter in (self._store_seconds, self._store_bytes):
                counter.labels(model)
            for gauge in (self._in_flight, self._slowdown):
                gauge.labels(model)
            self._queue.labels(model)

    def observe_status(self, model: str, stages: Mapping[str, StageStatus | None]) -> None:
        """Set the metrics of the status of a model's stages; None for a stage that did not answer."""
        self._stages.status[model] = stages
        for stage, status in stages.items():
            self._up.labels(stage, model).set(status is not None)
            if status is not None and status.attention:
                self._attention.remove_by_labels({"model": model})
                self._attention.labels(status.attention, model).set(1)
            if stage == "denoise" and status is not None and status.curve:
                self._slowdown.labels(model).set(status.curve.slowdown)

    def observe_snapshot(self, snapshot: Snapshot, mfu: Mapping[str, float | None]) -> None:
        """Set the ledger's snapshot of all replicas, and each denoiser's MFU (None if it is unknown)."""
        self._stages.snapshot = snapshot
        for model, value in mfu.items():
            self._mfu.labels(model).set(value if value is not None else float("nan"))

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

    def _record_image(self, usage: ImageUsage, model: str) -> None:
        self._images.labels(model).inc()
        self._nfe.labels(model).inc(usage.denoise.nfe)
        self._rows.labels(model).inc(usage.denoise.rows)
        self._tokens.labels(model).inc(usage.denoise.tokens)
        self._queue.labels(model).observe(usage.queue_seconds)
        for stage, cost in usage.stages.items():
            self._device.labels(stage, model).inc(cost.device_seconds)
            self._flops.labels(stage, model).inc(cost.flops)


class StageCollector(Collector):
    """Computes the stages' metrics from the latest snapshot and status at every scrape."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self.status: dict[str, Mapping[str, StageStatus | None]] = {}  # by model

    def collect(self) -> Iterator[Metric]:
        stages = {key: self._freshest(key, snapshot) for key, snapshot in self.snapshot.items()}
        for metric in STAGE_METRICS:
            family = _family(metric)
            for key, snapshot in stages.items():
                family.add_metric(key, metric.value(snapshot))
            yield family
        yield _attributed(stages)
        yield _unattributed(stages)
        denoisers = {model: snapshot for (stage, model), snapshot in stages.items() if stage == "denoise"}
        for tick_metric in TICK_METRICS if denoisers else ():
            histogram = HistogramMetricFamily(tick_metric.name, tick_metric.help, labels=["model"])
            for model, snapshot in denoisers.items():
                _fill(histogram, model, tick_metric.histogram(snapshot))
            yield histogram

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry asks at registration, when there is no snapshot yet

    def _freshest(self, key: StageKey, snapshot: StageSnapshot) -> StageSnapshot:
        """The snapshot; for a single replica with its own answer, because the ledger's is a second old."""
        stage, model = key
        answers = (stages.get(stage) for other, stages in self.status.items() if model in ("", other))
        status = next((answer for answer in answers if answer is not None), None)
        if status is None or snapshot.replicas > 1:
            return snapshot
        return replace(snapshot, status=status)


def _family(metric: StageMetric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=["stage", "model"])


def _attributed(stages: Snapshot) -> CounterMetricFamily:
    spec = ATTRIBUTED_METRIC
    family = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
    for (stage, _), snapshot in stages.items():
        for model, seconds in snapshot.attributed.items():
            family.add_metric([stage, model], seconds)
    return family


def _unattributed(stages: Snapshot) -> GaugeMetricFamily:
    spec = UNATTRIBUTED_METRIC
    family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for key, snapshot in stages.items():
        for reason in UNATTRIBUTED_REASONS:
            family.add_metric([*key, reason], max(0.0, getattr(snapshot.balance, reason)))
    return family


def _fill(histogram: HistogramMetricFamily, model: str, data: HistogramData) -> None:
    bounds = [*(str(bound) for bound in data.bounds), "+Inf"]
    histogram.add_metric([model], list(zip(bounds, accumulate(data.counts), strict=True)), data.total)
