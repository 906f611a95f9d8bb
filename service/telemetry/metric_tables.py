"""Every metric of the service: names, labels, help texts and values, in tables.

The label `model` holds ids of models that are or were served, never what a client wrote. No label holds a
request id, a prompt or a key; single requests, and sums by key, are in `/v1/accounting`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from safelight.service.usage.histograms import HistogramData
from safelight.service.usage.series import RequestSeries
from safelight.service.usage.service_snapshot import ServiceSnapshot
from safelight.service.usage.stage_snapshot import StageSnapshot

Samples = Iterable[
    tuple[tuple[str, ...], float]
]  # values by those of all labels but `model`, which is the last
Histograms = Iterable[tuple[tuple[str, ...], HistogramData]]


@dataclass(frozen=True, slots=True)
class GatewayMetric:
    """A gauge that a gateway sets itself, or one that is computed in another way than the others."""

    name: str
    kind: str  # counter or gauge
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class RequestMetric:
    """A counter of requests and images, read from the ledger's series of each model."""

    name: str
    labels: tuple[str, ...]
    help: str
    samples: Callable[[RequestSeries], Samples]
    kind: str = "counter"


@dataclass(frozen=True, slots=True)
class RequestHistogram:
    """A histogram of requests or images, read from the ledger's series of each model."""

    name: str
    labels: tuple[str, ...]
    help: str
    histograms: Callable[[RequestSeries], Histograms]


@dataclass(frozen=True, slots=True)
class LedgerMetric:
    """A counter or gauge of the whole service, or of each model, read from the ledger's snapshot."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    samples: Callable[[ServiceSnapshot], Samples]


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


def _one(value: Callable[[RequestSeries], float]) -> Callable[[RequestSeries], Samples]:
    """The only value of a model."""
    return lambda series: [((), value(series))]


def _by_stage(name: str) -> Callable[[RequestSeries], Samples]:
    """An amount of each stage, once images of the model were sent."""

    def samples(series: RequestSeries) -> Iterator[tuple[tuple[str, ...], float]]:
        if series.images:
            yield from (((stage,), getattr(amounts, name)) for stage, amounts in series.sent.items())

    return samples


def _denoised(name: str) -> Callable[[RequestSeries], Samples]:
    return _one(lambda series: getattr(series.sent["denoise"], name))


REQUEST_METRICS = (
    RequestMetric(
        "safelight_requests_total",
        ("outcome", "code", "model"),
        "Image requests by outcome and error code.",
        lambda series: (((outcome.value, code), n) for (outcome, code), n in series.requests.items()),
    ),
    RequestMetric("safelight_images_total", ("model",), "Images sent.", _one(lambda series: series.images)),
    RequestMetric(
        "safelight_images_retried_total",
        ("model",),
        "Images generated a second time because their replica was lost.",
        _one(lambda series: series.retried),
    ),
    RequestMetric(
        "safelight_promised_requests_total",
        ("model",),
        "Requests that were promised a time, and ended with images.",
        _one(lambda series: series.promised),
    ),
    RequestMetric(
        "safelight_kept_promises_total",
        ("model",),
        "Of these, the requests whose images were there in time.",
        _one(lambda series: series.kept),
    ),
    RequestMetric(
        "safelight_image_nfe_total", ("model",), "Network evaluations of the images sent.", _denoised("nfe")
    ),
    RequestMetric(
        "safelight_image_rows_total", ("model",), "Network rows of the images sent.", _denoised("rows")
    ),
    RequestMetric(
        "safelight_image_tokens_total",
        ("model",),
        "Image tokens in all rows of the images sent.",
        _denoised("tokens"),
    ),
    RequestMetric(
        "safelight_image_flops_total",
        ("stage", "model"),
        "Floating-point operations of the images sent.",
        _by_stage("flops"),
    ),
    RequestMetric(
        "safelight_image_device_seconds_total",
        ("stage", "model"),
        "Device seconds of the images sent.",
        _by_stage("device_seconds"),
    ),
    RequestMetric(
        "safelight_image_store_seconds_total",
        ("model",),
        "Seconds of waiting for the image store.",
        _one(lambda series: series.store.seconds),
    ),
    RequestMetric(
        "safelight_image_store_bytes_total",
        ("model",),
        "Bytes of the images stored.",
        _one(lambda series: series.store.num_bytes),
    ),
)
REQUEST_HISTOGRAMS = (
    RequestHistogram(
        "safelight_request_duration_seconds",
        ("outcome", "model"),
        "Seconds from a request's arrival to its answer.",
        lambda series: (((outcome.value,), data) for outcome, data in series.duration.items()),
    ),
    RequestHistogram(
        "safelight_image_queue_seconds",
        ("model",),
        "Seconds that an image waited in all queues.",
        lambda series: [((), series.queue)],
    ),
)
LEDGER_METRICS = (
    LedgerMetric(
        "safelight_images_in_flight",
        "gauge",
        ("model",),
        "Images requested and not yet answered.",
        lambda snapshot: (((model,), images) for model, images in snapshot.in_flight.items()),
    ),
    LedgerMetric(
        "safelight_mfu_ratio",
        "gauge",
        ("model",),
        "FLOP/s of the denoiser's ticks over the peak of its device, since the accounts began.",
        lambda snapshot: (
            ((model,), float("nan") if mfu is None else mfu) for model, mfu in snapshot.mfu.items()
        ),
    ),
    LedgerMetric(
        "safelight_gateway_replicas",
        "gauge",
        (),
        "Living gateways.",
        lambda snapshot: [((), snapshot.gateways)],
    ),
    LedgerMetric(
        "safelight_ledger_unsaved_seconds",
        "gauge",
        (),
        "Seconds for which the accounts could not be written to their database; 0 if they are written.",
        lambda snapshot: [((), snapshot.unsaved_seconds)],
    ),
    LedgerMetric(
        "safelight_ledger_dropped_records_total",
        "counter",
        (),
        "Records of requests for which a gateway had no room while the ledger took none.",
        lambda snapshot: [((), snapshot.dropped)],
    ),
)
GATEWAY_METRICS = (
    GatewayMetric(
        "safelight_ledger_up", "gauge", (), "1 if the ledger has answered, and its accounts are read."
    ),
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
    GatewayMetric("safelight_batches", "gauge", ("status",), "Batches that have not ended."),
    GatewayMetric("safelight_batch_lines", "gauge", ("state",), "Lines of batches that have not ended."),
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
