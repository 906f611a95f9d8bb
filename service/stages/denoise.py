"""Denoising for asyncio callers: each call awaits one image from the engine's thread."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import NO_PREVIEWS, FinishReason, GenerationParams, PreviewRequest
from safelight.service.errors import BrokenImage, DeadlineExceeded, ServiceError, StageFailed
from safelight.service.messages import (
    NO_CONTEXT,
    DenoiseResult,
    EncodedSource,
    EncodeResult,
    PreviewLatents,
    RequestContext,
    StageStatus,
)
from safelight.service.stages.admission import Place, StageAdmission
from safelight.service.stages.engine_thread import DENOISER, Abort, EngineLoop, PendingCall, Stop
from safelight.service.stages.tick_watchdog import TickWatchdog
from safelight.service.stages.usage_meter import UsageMeter

if TYPE_CHECKING:
    from safelight.pipeline.engine.engine import Engine, SampleOutcome
    from safelight.pipeline.engine.previews import SamplePreview

logger = logging.getLogger(__name__)

OnPreview = Callable[[PreviewLatents], None]


class DenoiseStage:
    """Hosts an engine; any number of tasks may call `generate` at the same time.

    Args:
        make_engine: Builds an engine; called on the stage's thread.
        deadline_seconds: Seconds after an image's text reached the encoder; an image that is not done by then
            expires.
        model_id: Of the engine's model, for usage reports.
        probability: With which promises should be kept.
        watchdog: Watches the engine's ticks; None: nobody does.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        deadline_seconds: float = math.inf,
        model_id: str = "",
        probability: float = 0.95,
        watchdog: TickWatchdog | None = None,
    ):
        self._deadline_seconds = deadline_seconds
        self.meter = UsageMeter(DENOISER, model_id)
        self.admission = StageAdmission(deadline_seconds, probability)
        self._watchdog = watchdog
        self._loop = EngineLoop(make_engine, self.meter, self.admission, watchdog)

    async def generate(
        self,
        conditioning: EncodeResult,
        params: GenerationParams,
        context: RequestContext = NO_CONTEXT,
        source: EncodedSource | None = None,
        previews: PreviewRequest = NO_PREVIEWS,
        on_preview: OnPreview | None = None,
        place: Place | None = None,
    ) -> DenoiseResult:
        """Denoise one image; when cancelled, return only after the sample has left the engine.

        Args:
            conditioning: The image's texts.
            params: The image.
            context: Its request.
            source: Of an edit.
            previews: The previews that it should have.
            on_preview: Called with each preview, on the caller's event loop, before this method returns.
            place: Of an image that was let in before; None: it is let in now.

        Raises:
            InvalidRequest: The engine refuses the parameters.
            PromiseRefused: The image would be done too late.
            DeadlineExceeded: The image was not done in time.
            StageLost: The engine failed; another one draws the image again.
            BrokenImage: The model's numbers for this image are not finite.
            StageFailed: The image cannot be drawn here, or there is no engine.
        """
        if place is None:
            with self.admission.place(params, context) as place:
                return await self.generate(conditioning, params, context, source, previews, on_preview, place)
        if self._loop.failure is not None:
            raise StageFailed()
        image_id = secrets.token_hex(8) if previews.count else ""
        call = self._make_call(conditioning, params, context, source, place)
        if on_preview is not None:
            call = replace(call, previews=previews, on_preview=_with_id(image_id, on_preview))
        self._loop.commands.put(call)
        if self._loop.failure is not None:  # the thread may have read its last command before this one
            call.settle(StageFailed())
        try:
            result = _denoise_result(await asyncio.shield(call.future), conditioning, context)
            return replace(result, image_id=image_id, forecast=self.admission.report(place))
        except asyncio.CancelledError:
            await asyncio.shield(self._abort(call))
            raise

    def status(self) -> StageStatus:
        return self._loop.status

    def wait(self) -> None:
        """Wait until the engine is built; raises what building it raised."""
        self._loop.ready.wait()
        self.check()

    def check(self) -> None:
        """Raise the reason if there is no engine and none will be built."""
        if self._loop.failure is not None:
            raise self._loop.failure

    def close(self) -> None:
        """End the engine's thread; images in the engine fail."""
        self._loop.commands.put(Stop())
        self._loop.join()
        if self._watchdog is not None:
            self._watchdog.close()

    def _make_call(
        self,
        conditioning: EncodeResult,
        params: GenerationParams,
        context: RequestContext,
        source: EncodedSource | None,
        place: Place,
    ) -> PendingCall:
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        cost = conditioning.cost
        return PendingCall(
            id=place.sample_id,
            params=params,
            conditioning=conditioning,
            context=context,
            loop=loop,
            future=loop.create_future(),
            arrived=now,
            deadline=now + self._deadline_seconds - cost.queue_seconds - cost.device_seconds,
            source=None if source is None else source.latents,
            urgency=place.urgency,
        )

    async def _abort(self, call: PendingCall) -> None:
        self._loop.commands.put(Abort(call.id))
        await asyncio.wait({call.future})


def _with_id(image_id: str, on_preview: OnPreview) -> Callable[[SamplePreview], None]:
    """Pass the engine's previews to `on_preview` as those of the image `image_id`."""
    return lambda preview: on_preview(
        PreviewLatents(image_id, preview.index, preview.latents, preview.budget_seconds)
    )


def _denoise_result(
    outcome: SampleOutcome | ServiceError, conditioning: EncodeResult, context: RequestContext
) -> DenoiseResult:
    """The stage's result for an engine's outcome; raises a `ServiceError` if there is no image."""
    if isinstance(outcome, ServiceError):
        raise outcome
    if outcome.reason is FinishReason.EXPIRED:
        raise DeadlineExceeded()
    if outcome.reason is not FinishReason.DONE or outcome.latents is None:
        fields = {"id": context.request_id, "reason": outcome.reason.value, "cause": outcome.error}
        logger.error("a sample left the engine without an image", extra={"fields": fields})
        raise _failure(outcome.reason)
    return DenoiseResult(outcome.latents, conditioning.text, conditioning.cost, outcome.usage)


def _failure(reason: FinishReason) -> ServiceError:
    """The error of an image that left the engine unfinished."""
    if reason is FinishReason.DIVERGED:
        return BrokenImage("The model drew no image: the denoiser left numbers that are not finite.")
    if reason is FinishReason.TOO_LARGE:
        return StageFailed("The denoiser has too little memory for an image of this size.")
    return StageFailed()
