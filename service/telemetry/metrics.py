"""The metrics of a gateway.

What the ledger knows is the same at every gateway: requests of all of them, and all replicas of the stages. A
gateway adds only what it has just seen itself, of which it keeps no counts.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from safelight.service.backend import STAGES
from safelight.service.messages import StageStatus
from safelight.service.telemetry.ledger_collector import LedgerCollector
from safelight.service.telemetry.metric_tables import GATEWAY_METRICS
from safelight.service.usage.reporter import Outbox
from safelight.service.usage.service_snapshot import ServiceSnapshot


class Metrics:
    """The metrics of one gateway, in a registry of its own.

    Args:
        outbox: Gets what this gateway counts, for the ledger, which adds it up.
    """

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.registry = CollectorRegistry()
        self.outbox = outbox or Outbox()
        self._ledger = LedgerCollector()
        self.registry.register(self._ledger)
        self._specs = {metric.name: metric for metric in GATEWAY_METRICS}
        self._ledger_up = self._gauge("safelight_ledger_up")
        self._up = self._gauge("safelight_stage_up")
        self._attention = self._gauge("safelight_attention_info")
        self._slowdown = self._gauge("safelight_tick_slowdown_ratio")
        self._batches = self._gauge("safelight_batches")
        self._batch_lines = self._gauge("safelight_batch_lines")

    def count_retry(self, model: str) -> None:
        """Count an image that is sent to the stages again."""
        self.outbox.count_retry(model)

    def set_in_flight(self, model: str, num_images: int) -> None:
        """Set how many images of a model this gateway has not answered yet."""
        self.outbox.set_in_flight(model, num_images)

    def serve(self, models: Sequence[str]) -> None:
        """Begin the series of `models`, and end those that tell the state of others."""
        for model in set(self._ledger.status) - set(models):
            del self._ledger.status[model]
            self._slowdown.remove(model)
            for stage in STAGES:
                self._up.remove(stage, model)
            self._attention.remove_by_labels({"model": model})
        for model in models:
            self._ledger.status.setdefault(model, {})
            self._slowdown.labels(model)

    def observe_status(self, model: str, stages: Mapping[str, StageStatus | None]) -> None:
        """Set the metrics of the status of a model's stages; None for a stage that did not answer."""
        self._ledger.status[model] = stages
        for stage, status in stages.items():
            self._up.labels(stage, model).set(status is not None)
            if status is not None and status.attention:
                self._attention.remove_by_labels({"model": model})
                self._attention.labels(status.attention, model).set(1)
            if stage == "denoise" and status is not None and status.curve:
                self._slowdown.labels(model).set(status.curve.slowdown)

    def observe_snapshot(self, snapshot: ServiceSnapshot | None) -> None:
        """Set what the ledger says; None if it does not answer.

        Then its series are absent, which no query takes for a counter that began again. What was said last
        could be: another gateway, behind the same address, may have said more since.
        """
        self._ledger.snapshot = snapshot
        self._ledger_up.set(snapshot is not None and snapshot.requests is not None)

    def observe_batches(self, batches: Mapping[str, int], lines: Mapping[str, int]) -> None:
        """Set how many batches are in each status, and their lines in each state."""
        for gauge, counts in ((self._batches, batches), (self._batch_lines, lines)):
            gauge.clear()
            for label, count in counts.items():
                gauge.labels(label).set(count)

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str) -> Gauge:
        spec = self._specs[name]
        return Gauge(name, spec.help, spec.labels, registry=self.registry)
