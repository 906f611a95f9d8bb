"""Computes the metrics of requests and stages from what the ledger says, at every scrape."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from safelight.service.messages import StageStatus
from safelight.service.telemetry.metric_tables import (
    ATTRIBUTED_METRIC,
    LEDGER_METRICS,
    REQUEST_HISTOGRAMS,
    REQUEST_METRICS,
    STAGE_METRICS,
    TICK_METRICS,
    UNATTRIBUTED_METRIC,
    UNATTRIBUTED_REASONS,
)
from safelight.service.usage.events import StageKey
from safelight.service.usage.histograms import HistogramData
from safelight.service.usage.series import RequestSeries
from safelight.service.usage.service_snapshot import ServiceSnapshot
from safelight.service.usage.stage_snapshot import Snapshot, StageSnapshot


class LedgerCollector(Collector):
    """The metrics of the latest snapshot, with the latest status of the stages."""

    def __init__(self) -> None:
        self.snapshot: ServiceSnapshot | None = None  # None: the ledger does not answer
        self.status: dict[str, Mapping[str, StageStatus | None]] = {}  # of the served models

    def collect(self) -> Iterator[Metric]:
        if self.snapshot is None:
            return
        for metric in LEDGER_METRICS:
            family = _family(metric.kind, metric.name, metric.help, metric.labels)
            for labels, value in metric.samples(self._snapshot_of_all_models(self.snapshot)):
                family.add_metric(labels, value)
            yield family
        if self.snapshot.requests is not None:
            yield from self._request_metrics(self.snapshot.requests)
            yield from self._stage_metrics(self.snapshot.stages)

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry asks at registration, when there is no snapshot yet

    def _snapshot_of_all_models(self, snapshot: ServiceSnapshot) -> ServiceSnapshot:
        """The snapshot, with zeros for served models that had nothing yet."""
        return replace(snapshot, in_flight=dict.fromkeys(self.status, 0) | dict(snapshot.in_flight))

    def _request_metrics(self, requests: Mapping[str, RequestSeries]) -> Iterator[Metric]:
        # A served model has its series from the start, so that its first image is an increase.
        all_series = {model: RequestSeries() for model in self.status} | dict(requests)
        for metric in REQUEST_METRICS:
            family = _family(metric.kind, metric.name, metric.help, metric.labels)
            for model, series in all_series.items():
                for labels, value in metric.samples(series):
                    family.add_metric([*labels, model], value)
            yield family
        for histogram in REQUEST_HISTOGRAMS:
            histograms = HistogramMetricFamily(histogram.name, histogram.help, labels=histogram.labels)
            for model, series in all_series.items():
                for labels, data in histogram.histograms(series):
                    _fill(histograms, [*labels, model], data)
            yield histograms

    def _stage_metrics(self, snapshots: Snapshot) -> Iterator[Metric]:
        stages = {key: self._freshest(key, snapshot) for key, snapshot in snapshots.items()}
        for metric in STAGE_METRICS:
            family = _family(metric.kind, metric.name, metric.help, ("stage", "model"))
            for key, snapshot in stages.items():
                family.add_metric(key, metric.value(snapshot))
            yield family
        yield _attributed(stages)
        yield _unattributed(stages)
        denoisers = {model: snapshot for (stage, model), snapshot in stages.items() if stage == "denoise"}
        for tick_metric in TICK_METRICS if denoisers else ():
            histogram = HistogramMetricFamily(tick_metric.name, tick_metric.help, labels=["model"])
            for model, snapshot in denoisers.items():
                _fill(histogram, [model], tick_metric.histogram(snapshot))
            yield histogram

    def _freshest(self, key: StageKey, snapshot: StageSnapshot) -> StageSnapshot:
        """The snapshot; for a single replica with its own answer, because the ledger's is a second old."""
        stage, model = key
        answers = (stages.get(stage) for other, stages in self.status.items() if model in ("", other))
        status = next((answer for answer in answers if answer is not None), None)
        if status is None or snapshot.replicas > 1:
            return snapshot
        return replace(snapshot, status=status)


def _family(
    kind: str, name: str, documentation: str, labels: Iterable[str]
) -> CounterMetricFamily | GaugeMetricFamily:
    make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return make(name, documentation, labels=list(labels))


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


def _fill(histogram: HistogramMetricFamily, labels: list[str], data: HistogramData) -> None:
    bounds = [*(str(bound) for bound in data.bounds), "+Inf"]
    histogram.add_metric(labels, list(zip(bounds, accumulate(data.counts), strict=True)), data.total)
