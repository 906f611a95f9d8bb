"""The gateway's backends and ledger client on Ray Serve.

Results go from stage to stage by reference; only the finished image passes through the gateway.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.errors import StageLost
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
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
from safelight.service.previews import PreviewDecoding, PreviewSink
from safelight.service.ray_serve.deferred import DeferredResult, defer, defer_items, loss_of
from safelight.service.usage.events import UsageReport
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.service_snapshot import ServiceSnapshot

T = TypeVar("T")
ENCODER, DENOISER, DECODER = STAGES
Handle = DeploymentHandle[Any]

SEND_SECONDS = 10.0  # after which the reporter sends a usage report again
STATUS_SECONDS = 2.0  # a stage that takes longer to answer counts as not ready


class SplitBackend:
    """A backend whose stages are three deployments.

    Args:
        encoder: Handle of the text encoder.
        denoiser: Handle of the denoiser.
        decoder: Handle of the image decoder.
        may_sleep: Stages that may have no replica. Their status is not queried, because that would start one.
    """

    def __init__(self, encoder: Handle, denoiser: Handle, decoder: Handle, may_sleep: Set[str] = frozenset()):
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder
        self._may_sleep = may_sleep

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        calls: list[Any] = []
        try:
            calls.append(self._encoder.encode.remote(params, context))
            encoded = await defer(calls[-1], ENCODER)
            if previews is not None:
                image = _StreamedImage(params, output, context, source, previews)
                return await self._generate_with_previews(encoded, image, calls)
            calls.append(self._denoiser.generate.remote(encoded, params, context, source))
            denoised = await defer(calls[-1], DENOISER)
            calls.append(self._decoder.decode.remote(denoised, params, output, context, source))
            result: DecodeResult = await calls[-1]
            return result
        except BaseException as error:
            _cancel(calls)
            if lost := loss_of(error, STAGES[len(calls) - 1]):
                raise lost from error
            raise

    async def _generate_with_previews(
        self, encoded: DeferredResult[EncodeResult], image: "_StreamedImage", calls: list[Any]
    ) -> DecodeResult:
        """Denoise and decode an image, and decode its previews on the way.

        Args:
            encoded: The image's texts.
            image: The image.
            calls: The calls that the caller of this method cancels; it adds to them.
        """
        output, context, source = image.output, image.context, image.source

        async def decode(latents: DeferredResult[PreviewLatents]) -> Preview | None:
            preview: Preview | None = await _result(
                self._decoder.decode_preview.remote(latents, output, context, source)
            )
            return preview

        async with PreviewDecoding(decode, image.previews) as decoding:
            denoiser = self._denoiser.options(stream=True)
            calls.append(
                denoiser.generate_with_previews.remote(
                    encoded, image.params, context, source, decoding.request
                )
            )
            async for is_result, reference in defer_items(calls[-1], DENOISER):
                if is_result:
                    call = self._decoder.decode.remote(reference, image.params, output, context, source)
                    calls.append(call)
                else:
                    decoding.start(reference)
            return decoding.charge(await calls[-1])

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        source: PreparedSource = await _result(self._decoder.prepare.remote(upload, context))
        return source

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        quote: Quote = await _result(self._denoiser.quote.remote(params, context))
        return quote

    async def status(self) -> Mapping[str, StageStatus | None]:
        handles = dict(zip(STAGES, (self._encoder, self._denoiser, self._decoder), strict=True))
        awake = [stage for stage in handles if stage not in self._may_sleep]
        answers = await asyncio.gather(*(_in_time(handles[stage].status.remote()) for stage in awake))
        return dict.fromkeys(STAGES) | dict(zip(awake, answers, strict=True))


@dataclass(frozen=True, slots=True)
class _StreamedImage:
    """One image that is drawn with previews."""

    params: GenerationParams
    output: ImageFormat
    context: RequestContext
    source: PreparedSource | None  # of an edit
    previews: PreviewSink


class ColocatedBackend:
    """A backend with all three stages in one deployment."""

    def __init__(self, pipeline: Handle, may_sleep: Set[str] = frozenset()):
        self._pipeline = pipeline
        self._may_sleep = may_sleep

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        if previews is None:
            result: DecodeResult = await _result(
                self._pipeline.generate.remote(params, output, context, source), DENOISER
            )
            return result
        pipeline = self._pipeline.options(stream=True)
        call: Any = pipeline.generate_with_previews.remote(params, output, context, source, previews.request)
        try:
            async for item in call:
                if isinstance(item, DecodeResult):
                    return item
                previews.put(item)
        except BaseException as error:
            _cancel([call])
            if lost := loss_of(error, DENOISER):
                raise lost from error
            raise
        raise StageLost(stage=DENOISER)  # the stream ended without the image

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        source: PreparedSource = await _result(self._pipeline.prepare.remote(upload, context))
        return source

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        quote: Quote = await _result(self._pipeline.quote.remote(params, context))
        return quote

    async def status(self) -> Mapping[str, StageStatus | None]:
        if self._may_sleep:
            return dict.fromkeys(STAGES)
        return await _in_time(self._pipeline.status.remote()) or dict.fromkeys(STAGES)


class RemoteLedger:
    """A `LedgerClient` of the ledger's deployment."""

    def __init__(self, ledger: Handle):
        self._ledger = ledger

    def send(self, report: UsageReport) -> None:
        """Deliver one report. Blocks until the ledger has recorded it: for a reporter's thread only."""
        self._ledger.receive.remote(report).result(timeout_s=SEND_SECONDS)

    async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        return await _in_time(self._ledger.status.remote(model)) or dict.fromkeys(STAGES)

    async def snapshot(self) -> ServiceSnapshot:
        answer: ServiceSnapshot = await asyncio.wait_for(self._ledger.snapshot.remote(), STATUS_SECONDS)
        return answer

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        answer: AccountingReport = await asyncio.wait_for(
            self._ledger.report.remote(window, latest), STATUS_SECONDS
        )
        return answer


async def _result(call: Any, stage: str = DECODER) -> Any:
    """The result of a call of a stage, which is cancelled if nobody waits for it any more."""
    try:
        return await call
    except BaseException as error:
        _cancel([call])
        if lost := loss_of(error, stage):
            raise lost from error
        raise


def _cancel(calls: Sequence[Any]) -> None:
    """Cancel all calls, the last one first."""
    for call in reversed(calls):
        call.cancel()


async def _in_time(answer: Awaitable[T]) -> T | None:
    """The answer; None if it fails or takes longer than `STATUS_SECONDS`."""
    try:
        return await asyncio.wait_for(answer, STATUS_SECONDS)
    except Exception:
        return None
