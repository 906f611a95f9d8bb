"""The gateway's promise on top of a backend: all images or none, in time, and a lost one sent again."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES, Backend
from safelight.service.errors import QueueFull, ShuttingDown, StageLost, as_service_error
from safelight.service.messages import NO_CONTEXT, DecodeResult, ImageFormat, RequestContext, StageStatus
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.settings import Settings, may_sleep
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.client import LedgerClient

logger = logging.getLogger(__name__)

DRAIN_POLL_SECONDS = 0.05


class RequestDispatcher:
    """Draws the images of whole requests."""

    def __init__(
        self, backend: Backend, metrics: Metrics, settings: Settings, books: LedgerClient | None = None
    ):
        self._backend = backend
        self._books = books
        self._metrics = metrics
        self._settings = settings
        self._in_flight = 0
        self._is_draining = False

    async def generate(
        self, images: Sequence[GenerationParams], output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> list[DecodeResult]:
        """Every image of one request, or a `ServiceError` and no image left in the batch."""
        try:
            with self._room_for(len(images)):
                return await asyncio.wait_for(
                    self._draw_all(images, output, context), self._settings.deadline_seconds
                )
        except Exception as error:
            known = as_service_error(error)
            if known.status >= 500:
                logger.warning("drawing failed: %s: %s", type(error).__name__, error)
            raise known from error

    async def drain(self) -> None:
        """Refuse every further request; returns when no image is in flight."""
        self._is_draining = True
        while self._in_flight:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def status(self) -> Mapping[str, StageStatus | None]:
        """How every stage is; None for one that does not say, and has not lately."""
        try:
            status = await self._backend.status()
        except Exception as error:
            logger.warning("no status: %s: %s", type(error).__name__, error)
            status = dict.fromkeys(STAGES)
        if (
            self._books is not None and None in status.values()
        ):  # it is too full to answer in time, or may be asleep
            said = await self._books.status()
            asleep = dict.fromkeys(may_sleep(self._settings), StageStatus(is_asleep=True))
            status = {stage: own or said.get(stage) or asleep.get(stage) for stage, own in status.items()}
        self._metrics.observe_stages(status)
        return status

    @contextmanager
    def _room_for(self, num_images: int) -> Iterator[None]:
        if self._is_draining:
            raise ShuttingDown()
        if self._in_flight + num_images > self._settings.max_pictures:
            raise QueueFull()
        self._count(num_images)
        try:
            yield
        finally:
            self._count(-num_images)

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.set_in_flight(self._in_flight)

    async def _draw_all(
        self, images: Sequence[GenerationParams], output: ImageFormat, context: RequestContext
    ) -> list[DecodeResult]:
        tasks = [asyncio.ensure_future(self._draw(params, output, context)) for params in images]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)

    async def _draw(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext
    ) -> DecodeResult:
        try:
            return await self._backend.generate(params, output, context)
        except Exception as error:
            if not isinstance(as_service_error(error), StageLost):
                raise
        # An image is a pure function of its params, so drawing it twice is drawing it once.
        self._metrics.count_resent()
        return await self._backend.generate(params, output, context)
