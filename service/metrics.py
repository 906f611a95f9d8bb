"""Every metric of the service: names, labels and buckets in one table."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.accounting import UsageRecord
from service.payloads import PictureUsage, StageCensus

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The gateway's own registry; request ids and prompts are never labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter("safelight_requests", "Image requests, by how they left.", ["outcome", "code"], registry=own)
        self._seconds = Histogram("safelight_request_seconds", "From arrival to answer.", ["outcome"], buckets=SECONDS, registry=own)
        self._queue = Histogram("safelight_queue_seconds", "A picture's waiting in all queues.", buckets=SECONDS, registry=own)
        self._images = Counter("safelight_images", "Pictures drawn and sent.", registry=own)
        self._nfe = Counter("safelight_nfe", "Network evaluations of pictures sent.", registry=own)
        self._rows = Counter("safelight_rows", "Network rows of pictures sent.", registry=own)
        self._flops = Counter("safelight_flops", "Floating-point operations of pictures sent.", ["stage"], registry=own)
        self._device = Counter("safelight_device_seconds", "Device time of pictures sent.", ["stage"], registry=own)
        self._resent = Counter("safelight_resent", "Pictures sent a second time because their replica was lost.", registry=own)
        self._in_flight = Gauge("safelight_images_in_flight", "Pictures asked for and not yet answered.", registry=own)
        self._up = Gauge("safelight_stage_up", "1 when the stage answers.", ["stage"], registry=own)
        self._attention = Gauge("safelight_attention", "1 for the denoiser's attention back end.", ["backend"], registry=own)
        self._slowness = Gauge("safelight_tick_slowness", "Tick time over what was measured at start.", registry=own)
        self._census = {
            name: Gauge(f"safelight_stage_{name}", help, ["stage"], registry=own)
            for name, help in (
                ("pictures", "Pictures finished by the answering replica since it started."),
                ("running", "Pictures in the running batch."),
                ("waiting", "Pictures waiting for the batch."),
                ("ticks", "Ticks since the replica started."),
                ("rows", "Network rows over all ticks."),
                ("cache_hits", "Texts answered from the cache."),
                ("cache_misses", "Texts that had to be encoded."),
            )
        }

    def record(self, record: UsageRecord) -> None:
        """The accounts' sink."""
        self._requests.labels(record.outcome.value, record.code).inc()
        self._seconds.labels(record.outcome.value).observe(record.seconds)
        for usage in record.pictures:
            self._record_picture(usage)

    def count_resent(self) -> None:
        self._resent.inc()

    def set_in_flight(self, num_pictures: int) -> None:
        self._in_flight.set(num_pictures)

    def observe_stages(self, stages: Mapping[str, StageCensus | None]) -> None:
        for stage, census in stages.items():
            self._up.labels(stage).set(census is not None)
            if census is not None and census.attention:
                self._attention.clear()
                self._attention.labels(census.attention).set(1)
            if stage == "denoise" and census is not None and census.curve:
                self._slowness.set(census.curve.factor)
            for name, gauge in self._census.items():
                if census is not None:
                    gauge.labels(stage).set(getattr(census, name))

    def expose(self) -> bytes:
        return generate_latest(self.registry)

    def _record_picture(self, usage: PictureUsage) -> None:
        self._images.inc()
        self._nfe.inc(usage.denoise.nfe)
        self._rows.inc(usage.denoise.rows)
        self._queue.observe(usage.queue_seconds)
        for stage, cost in usage.stages.items():
            self._device.labels(stage).inc(cost.device_seconds)
            self._flops.labels(stage).inc(cost.flops)
