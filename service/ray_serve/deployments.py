"""Ray Serve deployments of the stages and the ledger: thin wrappers around their classes."""

import faulthandler
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.params import NO_PREVIEWS, GenerationParams, PreviewRequest
from safelight.service.errors import ServiceError
from safelight.service.inprocess import make_decode_stage, make_denoise_stage, make_encode_stage
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    DenoiseResult,
    EncodedSource,
    EncodeResult,
    ImageFormat,
    PreparedSource,
    Preview,
    PreviewLatents,
    Quote,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.previews import CallbackSink, PreviewDecoding, PreviewSink
from safelight.service.ray_serve.backends import RemoteLedger
from safelight.service.ray_serve.deferred import DeferredResult, PostponedResult, ReadyResult
from safelight.service.runtime.asyncio_tasks import items_then_result
from safelight.service.settings import Settings
from safelight.service.stages.decode import DecodeJob, DecodeStage, image_or_raise
from safelight.service.stages.denoise import DenoiseStage, OnPreview
from safelight.service.stages.encode import EncodeJob, EncodeStage
from safelight.service.telemetry.logs import configure_logs
from safelight.service.telemetry.tracing import make_tracing
from safelight.service.usage.client import LocalLedger
from safelight.service.usage.events import StageReport, UsageReport
from safelight.service.usage.open_ledger import open_stored_ledger
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.reporter import UsageReporter
from safelight.service.usage.service_snapshot import ServiceSnapshot

if TYPE_CHECKING:
    from safelight.service.usage.stored_ledger import StoredLedger

MAX_BATCH = 8  # jobs collected for one call; the stage splits them into batches of its network's size
BATCH_WAIT_SECONDS = 0.005  # far below a tick, and enough to collect the images of one request

HUNG = 70  # the exit status of a process whose denoiser hangs

logger = logging.getLogger(__name__)

Handle = DeploymentHandle[Any]
Stage = TypeVar("Stage", EncodeStage, DenoiseStage, DecodeStage)


class LedgerDeployment:
    """The ledger as a single replica: all stage replicas report to it, all gateways query it."""

    def __init__(self, settings: Settings):
        configure_logs(settings, "ledger")
        self._memory = LocalLedger(settings)
        self._stored = open_stored_ledger(settings)

    def __del__(self) -> None:
        """Serve calls this when the replica ends."""
        stored: StoredLedger | None = getattr(self, "_stored", None)  # `__init__` may not have finished
        if stored is not None:
            stored.stop()

    async def receive(self, report: UsageReport) -> None:
        if self._stored is None:
            self._memory.send(report)
        else:
            await self._stored.receive(report)

    async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        return await (self._stored or self._memory).status(model)

    async def snapshot(self) -> ServiceSnapshot:
        return await (self._stored or self._memory).snapshot()

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        return await (self._stored or self._memory).report(window, latest)


class StageDeployment(Generic[Stage]):
    """The base class of the stages' deployments: status, autoscaling statistics and usage reports.

    Args:
        name: The stage's name in traces.
        make_stage: Creates the stage, which then loads its network on its own thread.
        settings: The service's settings.
        ledger: Handle of the ledger.
    """

    def __init__(self, name: str, make_stage: Callable[[], Stage], settings: Settings, ledger: Handle):
        configure_logs(settings, name)
        self._tracing = make_tracing(settings, name)
        self._stage: Stage = make_stage()
        # started before the network is loaded, so that the seconds of loading are reported too
        self._reporter = UsageReporter(self._collect_report, RemoteLedger(ledger).send)
        self._reporter.start()
        self._stage.wait()

    def __del__(self) -> None:
        """Deliver the last usage events without waiting: Serve calls this when the replica ends."""
        if hasattr(self, "_reporter"):  # the replica may end before `__init__` has finished
            self._reporter.stop()

    async def status(self) -> StageStatus:
        return self._stage.status()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve if the number of replicas is a range."""
        return self._stage.meter.autoscaling_stats()

    def _collect_report(self, source: str, number: int) -> StageReport:
        return self._stage.meter.collect_report(source, number, self._stage.status())


class EncodeDeployment(StageDeployment[EncodeStage]):
    """The text encoder."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        super().__init__("encode", lambda: make_encode_stage(model, settings), settings, ledger)

    async def encode(self, params: GenerationParams, context: RequestContext = NO_CONTEXT) -> EncodeResult:
        with self._tracing.span("encode", context.traceparent) as span, self._stage.meter.count_jobs(1):
            encoded = await self._encode_batch(EncodeJob(params, context))
            span.set(queue_seconds=encoded.cost.queue_seconds, device_seconds=encoded.cost.device_seconds)
            return encoded

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _encode_batch(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult]:
        return await self._stage.run_batch(jobs)


class DenoiseDeployment(StageDeployment[DenoiseStage]):
    """The denoiser. Its engine forms batches itself, so every image goes to it at once."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        super().__init__(
            "denoise", lambda: make_denoise_stage(model, settings, end_process), settings, ledger
        )

    async def generate(
        self,
        conditioning: DeferredResult[EncodeResult] | PostponedResult[EncodeResult],
        params: GenerationParams,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewRequest = NO_PREVIEWS,
        on_preview: OnPreview | None = None,
    ) -> DenoiseResult:
        """Denoise one image; `on_preview` is for callers in this process."""
        # before the texts are there: a refused image should cost nothing, and is refused at once
        with self._stage.admission.place(params, context) as place:
            states, content = await conditioning.value(), await _content_of(source)
            with self._tracing.span(
                "denoise", context.traceparent, solver=params.solver, image=params.image_index
            ) as span:
                denoised = await self._stage.generate(
                    states, params, context, content, previews, on_preview, place
                )
                usage = denoised.denoise
                span.set(
                    queue_seconds=usage.cost.queue_seconds,
                    device_seconds=usage.cost.device_seconds,
                    nfe=usage.nfe,
                    rows=usage.rows,
                )
                return denoised

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        """What an image would be promised now."""
        return self._stage.admission.quote(params, context)

    async def generate_with_previews(
        self,
        conditioning: DeferredResult[EncodeResult],
        params: GenerationParams,
        context: RequestContext,
        source: PreparedSource | None,
        previews: PreviewRequest,
    ) -> AsyncIterator[bool | PreviewLatents | DenoiseResult]:
        """The previews of one image and then its result, each after a truth value as in `defer_items`."""

        async def generate(on_preview: OnPreview) -> DenoiseResult:
            return await self.generate(conditioning, params, context, source, previews, on_preview)

        items = items_then_result(generate)
        async with aclosing(items):
            async for item in items:
                yield isinstance(item, DenoiseResult)
                yield item

    def check_health(self) -> None:
        """Called by Serve; an exception makes it replace the replica."""
        self._stage.check()


class DecodeDeployment(StageDeployment[DecodeStage]):
    """The image decoder."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        super().__init__("decode", lambda: make_decode_stage(model, settings), settings, ledger)

    async def decode(
        self,
        denoised: DeferredResult[DenoiseResult] | ReadyResult[DenoiseResult],
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
    ) -> DecodeResult:
        latents, content = await denoised.value(), await _content_of(source)
        with (
            self._tracing.span("decode", context.traceparent, format=output.format) as span,
            self._stage.meter.count_jobs(1),
        ):
            job = DecodeJob(latents, params, output, context, content)
            result = image_or_raise(await self._decode_batch(job))
            cost = result.usage.decode
            span.set(queue_seconds=cost.queue_seconds, device_seconds=cost.device_seconds)
            return result

    async def decode_preview(
        self,
        preview: DeferredResult[PreviewLatents] | ReadyResult[PreviewLatents],
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
    ) -> Preview | None:
        """Decode a preview, or None if it was dropped."""
        latents, content = await preview.value(), await _content_of(source)
        return await self._stage.decode_preview(latents, output, context, content)

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        """Read and encode the files of an edit, which stay in Ray's object store: gateways have no torch."""
        with self._tracing.span("prepare", context.traceparent) as span:
            content, report = await self._stage.prepare(upload, context)
            span.set(queue_seconds=report.cost.queue_seconds, device_seconds=report.cost.device_seconds)
            return PreparedSource(report, DeferredResult(ray.put(content), "decode"))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _decode_batch(self, jobs: Sequence[DecodeJob]) -> list[DecodeResult | ServiceError]:
        return await self._stage.run_batch(jobs)


class ColocatedDeployment:
    """All three stages in one replica."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        self._encoder = EncodeDeployment(model, settings, ledger)
        self._denoiser = DenoiseDeployment(model, settings, ledger)
        self._decoder = DecodeDeployment(model, settings, ledger)
        configure_logs(settings, "colocated")  # in place of the last stage's name

    def __del__(self) -> None:
        """Serve calls this when the replica ends; see `StageDeployment.__del__`."""
        for name in ("_encoder", "_denoiser", "_decoder"):
            if hasattr(self, name):
                getattr(self, name).__del__()

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        """Generate one image; `previews` is for callers in this process."""
        encoding = PostponedResult(lambda: self._encoder.encode(params, context))

        async def decode(latents: PreviewLatents) -> Preview | None:
            return await self._decoder.decode_preview(ReadyResult(latents), output, context, source)

        async with PreviewDecoding(decode, previews) as decoding:
            denoised = await self._denoiser.generate(
                encoding, params, context, source, decoding.request, decoding.start
            )
            result = await self._decoder.decode(ReadyResult(denoised), params, output, context, source)
            return decoding.charge(result)

    async def generate_with_previews(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext,
        source: PreparedSource | None,
        previews: PreviewRequest,
    ) -> AsyncIterator[Preview | DecodeResult]:
        """The previews of one image, and then the image."""

        async def generate(put: Callable[[Preview], None]) -> DecodeResult:
            return await self.generate(params, output, context, source, CallbackSink(previews, put))

        items = items_then_result(generate)
        async with aclosing(items):
            async for item in items:
                yield item

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        return await self._decoder.prepare(upload, context)

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        return await self._denoiser.quote(params, context)

    async def status(self) -> dict[str, StageStatus]:
        return {
            "encode": await self._encoder.status(),
            "denoise": await self._denoiser.status(),
            "decode": await self._decoder.status(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The denoiser's statistics, because it does nearly all of the work."""
        return self._denoiser.record_autoscaling_stats()

    def check_health(self) -> None:
        self._denoiser.check_health()


def end_process(seconds: float) -> None:
    """End this process, in which a tick has not ended within `seconds`.

    Nothing else ends a thread that hangs in native code. Serve then starts another replica, to which the
    images are sent.
    """
    faulthandler.dump_traceback()
    logger.critical(
        "a tick of the denoiser has not ended, so its process ends", extra={"fields": {"limit": seconds}}
    )
    logging.shutdown()
    os._exit(HUNG)


async def _content_of(source: PreparedSource | None) -> EncodedSource | None:
    """Fetch the source of an edit; raises `ray.exceptions.ObjectLostError` if its decoder died."""
    if source is None:
        return None
    content: EncodedSource = await source.content.value()
    return content
