"""Admission, deadline, fan-out and retry of requests: all images of a request or none, in time."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace

from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.early_refusals import AskedImages
from safelight.service.errors import PromiseRefused, QueueFull, ShuttingDown, StageLost, as_service_error
from safelight.service.image_stream import ImageStream
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    Quote,
    RequestContext,
    StageStatus,
    Upload,
    with_size_of,
    with_source_usage,
)
from safelight.service.model_backends import ModelBackend, ModelBackends
from safelight.service.previews import PreviewSink
from safelight.service.promises import GatewayPromises
from safelight.service.retries import Losses, RetryBudget
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.settings import Settings, may_sleep
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.client import LedgerClient

logger = logging.getLogger(__name__)

DRAIN_POLL_SECONDS = 0.05
QUOTE_SECONDS = 5.0  # for a denoiser to answer
# A gateway's budget of retries: all images in flight twice, and once more every minute.
RETRIES_PER_PICTURE = 2
REFILL_SECONDS = 120.0


class RequestDispatcher:
    """Generates all images of a request through the backend of its model.

    Args:
        backends: Generate single images, each those of its model.
        metrics: Counts retries and images in flight.
        settings: Limits and deadlines.
        ledger: Knows the status of a stage that does not answer.
        promises: Refuses early what the denoisers would refuse.
    """

    def __init__(
        self,
        backends: ModelBackends,
        metrics: Metrics,
        settings: Settings,
        ledger: LedgerClient | None = None,
        promises: GatewayPromises | None = None,
    ):
        self.promises = promises or GatewayPromises(settings)
        self._backends = backends
        self._ledger = ledger
        self._metrics = metrics
        self._settings = settings
        self._is_draining = False
        self._retries = RetryBudget(RETRIES_PER_PICTURE * settings.max_pictures, REFILL_SECONDS)
        # By model: one image at a time is drawn alone, lest the death of one be taken for that of another.
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def generate(
        self,
        images: Sequence[GenerationParams],
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        upload: Upload | None = None,
        digest: str = "",
    ) -> list[DecodeResult]:
        """Generate all images of one request, in order.

        Args:
            images: Their parameters. Edits get the size that their source has.
            output: Their file format.
            context: Of the request; says the model.
            upload: What the images are edits of.
            digest: Of the request, by which it is known when it comes again.

        Raises:
            ServiceError: The request failed; none of its images is left in the batch.
        """
        asked = _asked(images, context, digest)
        context = self.promises.admit(asked, context)
        entry = self._admit(context.model, len(images))
        try:
            return await self._generate_in_time(images, _Job(entry, output, context, upload, asked))
        finally:
            self._count(entry, -len(images))

    def start_stream(
        self,
        images: Sequence[GenerationParams],
        output: ImageFormat,
        stream: ImageStream,
        context: RequestContext = NO_CONTEXT,
        upload: Upload | None = None,
        digest: str = "",
    ) -> "asyncio.Future[list[DecodeResult]]":
        """Begin to generate all images of one request into `stream`.

        Args:
            images: As in `generate`, as are the arguments that are not listed.
            stream: Gets images and previews.

        Returns:
            The work, whose result is the images in order. It ends without its reader, and can be cancelled.

        Raises:
            ServiceError: The request was not admitted. The work raises one if the request fails later.
        """
        asked = _asked(images, context, digest)
        context = self.promises.admit(asked, context)
        entry = self._admit(context.model, len(images))
        job = _Job(entry, output, context, upload, asked, stream)
        work = asyncio.ensure_future(self._generate_in_time(images, job))
        work.add_done_callback(lambda _: self._count(entry, -len(images)))  # also if it is cancelled at once
        return work

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        """What the denoiser would say of an image, if it came now. Raises `ServiceError`."""
        entry = self._backends.find(context.model)
        try:
            return await asyncio.wait_for(entry.backend.quote(params, context), QUOTE_SECONDS)
        except Exception as error:
            raise as_service_error(error) from error

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._is_draining

    async def drain(self) -> None:
        """Refuse new requests; returns when no image is in flight."""
        self._is_draining = True
        while self._backends.in_flight():
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def status(self, model_id: str = "") -> Mapping[str, StageStatus | None]:
        """The status of every stage of a model; None for one that neither answers nor has reported recently.

        Without an id, those of the default model. Raises `ModelNotFound`.
        """
        return await self._status_of(self._backends.find(model_id))

    async def status_of_all(self) -> dict[str, Mapping[str, StageStatus | None]]:
        """The status of every stage by the id of its model."""
        entries = self._backends.current  # which may be replaced meanwhile
        statuses = await asyncio.gather(*map(self._status_of, entries))
        return {entry.model.id: status for entry, status in zip(entries, statuses, strict=True)}

    async def _status_of(self, entry: ModelBackend) -> Mapping[str, StageStatus | None]:
        try:
            status = await entry.backend.status()
        except Exception as error:
            logger.warning("the backend gives no status: %s: %s", type(error).__name__, error)
            status = dict.fromkeys(STAGES)
        # a stage may be too busy to answer in time, or asleep
        if self._ledger is not None and None in status.values():
            reported = await self._ledger.status(entry.model.id)
            asleep = dict.fromkeys(may_sleep(self._settings), StageStatus(is_asleep=True))
            status = {
                stage: answer or reported.get(stage) or asleep.get(stage) for stage, answer in status.items()
            }
        self._metrics.observe_status(entry.model.id, status)
        return status

    def _admit(self, model_id: str, num_images: int) -> ModelBackend:
        """Count the images as in flight. Raises `ShuttingDown`, `QueueFull` or `ModelNotFound`."""
        if self._is_draining:
            raise ShuttingDown()
        entry = self._backends.find(model_id)
        # each model has its own limit, so that a queue for one keeps out no images of another
        if self._backends.in_flight(entry.model.id) + num_images > self._settings.max_pictures:
            raise QueueFull()
        self._count(entry, num_images)
        return entry

    def _count(self, entry: ModelBackend, change: int) -> None:
        self._backends.count(entry, change)
        self._metrics.set_in_flight(entry.model.id, self._backends.in_flight(entry.model.id))

    async def _generate_in_time(self, images: Sequence[GenerationParams], job: "_Job") -> list[DecodeResult]:
        try:
            return await asyncio.wait_for(self._generate_all(images, job), self._settings.deadline_seconds)
        except Exception as error:
            answer = as_service_error(error)
            if isinstance(answer, PromiseRefused):
                self.promises.refused(job.asked, job.context, answer)
            raise answer from error  # the request's log line names the cause

    async def _generate_all(self, images: Sequence[GenerationParams], job: "_Job") -> list[DecodeResult]:
        source = None if job.upload is None else await self._prepare(job.upload, job)
        if job.stream is not None:
            job.stream.begin()
        job = replace(job, source=source)
        tasks = [asyncio.ensure_future(self._run(params, job)) for params in images]
        try:
            return with_source_usage(await asyncio.gather(*tasks), source)
        finally:
            await cancel_and_wait(*tasks)

    async def _prepare(self, upload: Upload, job: "_Job") -> PreparedSource:
        losses = Losses()
        while True:
            try:
                return await job.entry.backend.prepare(upload, job.context)
            except Exception as error:
                self._check_retry(error, losses, job, {"image": "source"})

    async def _run(self, params: GenerationParams, job: "_Job") -> DecodeResult:
        """Generate one image, and put it into the stream, if there is one."""
        params, stream = with_size_of(params, job.source), job.stream
        if stream is None:
            return await self._generate_one(params, job, None)
        result = await self._generate_one(params, job, stream.sink(params))
        if params.image_index == 0:
            [result] = with_source_usage([result], job.source)
        stream.put(params, result)
        return result

    async def _generate_one(
        self, params: GenerationParams, job: "_Job", previews: PreviewSink | None
    ) -> DecodeResult:
        """Generate one image, again if a stage is lost, which may have held the source.

        An image is a pure function of its parameters, so a retry gives the same one; it has its promise.
        """
        losses, source = Losses(), job.source
        while True:
            async with self._turn(losses, job):
                try:
                    if losses.total and job.upload is not None:
                        source = await job.entry.backend.prepare(job.upload, job.context)
                    terms = job.context.terms
                    if terms is not None and losses.total:
                        terms = replace(terms, is_certain=True)
                    context = replace(job.context, is_alone=losses.is_suspect, terms=terms)
                    return await job.entry.backend.generate(params, job.output, context, source, previews)
                except Exception as error:
                    self._check_retry(error, losses, job, {"image": params.image_index})

    def _turn(self, losses: Losses, job: "_Job") -> AbstractAsyncContextManager[None]:
        """Within it, no other image that is to be drawn alone is under way from here."""
        return self._alone[job.entry.model.id] if losses.is_suspect else nullcontext()

    def _check_retry(self, error: Exception, losses: Losses, job: "_Job", fields: dict[str, object]) -> None:
        """Count a retry if `error` is the loss of a stage that may be tried again; raise otherwise."""
        lost = as_service_error(error)
        if not isinstance(lost, StageLost):
            raise error
        losses.add(lost)
        if not self._retries.take(asyncio.get_running_loop().time()):
            raise error
        fields = {"id": job.context.request_id, **fields, "cause": type(error).__name__}
        fields |= {"stage": lost.stage, "alone": losses.is_suspect}
        logger.warning("a stage was lost, the image is sent again", extra={"fields": fields})
        self._metrics.count_retry(job.entry.model.id)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the images of one request share."""

    entry: ModelBackend
    output: ImageFormat
    context: RequestContext
    upload: Upload | None  # of edits
    asked: AskedImages  # as early refusals see it
    stream: ImageStream | None = None  # gets the images of a streamed request
    source: PreparedSource | None = None  # the upload, prepared


def _asked(images: Sequence[GenerationParams], context: RequestContext, digest: str) -> AskedImages:
    """A request as early refusals see it."""
    first = images[0]
    evaluations = first.steps_taken * (1 + needs_uncond(first.guidance_scale))
    cost = float(first.width * first.height * evaluations)
    return AskedImages(context.model, context.share.caller, digest, cost, len(images))
