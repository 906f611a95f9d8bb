"""Draws jobs in one gateway: claims them, holds their leases, ends or gives them back."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context

from safelight.service.errors import (
    BrokenImage,
    DeadlineExceeded,
    InvalidRequest,
    LeaseLost,
    LimitReached,
    PoisonedRequest,
    QueueFull,
    ServiceError,
    ShuttingDown,
    as_service_error,
)
from safelight.service.jobs.batch_lines import BatchLines
from safelight.service.jobs.drawing import Draw, Drawing
from safelight.service.jobs.job import EDIT, Job, JobError, JobResult
from safelight.service.jobs.job_table import MAX_FAILURES
from safelight.service.jobs.leases import JobLeases
from safelight.service.messages import Upload
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

logger = logging.getLogger(__name__)

RENEW_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 60.0
BUSY_SECONDS = 2.0  # after a service that was full
# A failure of the service that is none of the job: drawn again, however often.
BUSY_ERRORS = (QueueFull, ShuttingDown, LimitReached)
# Of a line of a batch, too, since all others go before it.
BUSY_LINE_ERRORS = (*BUSY_ERRORS, DeadlineExceeded)
FINAL_ERRORS = (InvalidRequest, BrokenImage, PoisonedRequest)  # another drawing would end alike


class JobRunner:
    """Draws jobs.

    Args:
        leases: Of the jobs.
        draw: Draws one.
        owner: The gateway, in leases.
        concurrency: How many jobs it draws at a time, beside those whose callers wait.
        lines: Of batches.
        max_line_images: How many images of lines it draws at a time, as far as one line has not more.
        on_end: Called when a drawing has ended.
    """

    def __init__(
        self,
        leases: JobLeases,
        draw: Draw,
        owner: str,
        concurrency: int,
        lines: BatchLines,
        max_line_images: int,
        on_end: Callable[[], None] = lambda: None,
    ):
        self._leases = leases
        self._draw = draw
        self._owner = owner
        self._concurrency = concurrency
        self._lines = lines
        self._max_line_images = max_line_images
        self._on_end = on_end
        self._drawings: dict[str, Drawing] = {}
        self._is_stopping = False

    def find(self, job_id: str) -> Drawing | None:
        """The drawing of a job, if it is drawn here."""
        return self._drawings.get(job_id)

    def start(self, job: Job) -> None:
        """Draw a job that was claimed."""
        drawing = Drawing(job)
        self._drawings[job.id] = drawing
        # outside of the context of the request that submits it: Ray cancels what was called for a request
        # whose client has gone
        drawing.task = asyncio.create_task(self._run(drawing), context=Context())

    async def fill(self) -> None:
        """Claim jobs and lines until there is no other, or no room. Raises `JobsUnavailable`."""
        while self._has_room() and await self._leases.has_claimable():
            job = await self._leases.claim(self._owner)
            if job is None:
                break
            self.start(job)
        while (room := self._line_room()) > 0 and await self._lines.has_claimable():
            if not (jobs := await self._lines.claim(self._owner, room)):
                break
            for job in jobs:
                self.start(job)

    async def cancel_batch(self, batch_id: str) -> None:
        """Stop drawing the lines of a batch."""
        drawings = [drawing for drawing in self._drawings.values() if drawing.job.batch == batch_id]
        await asyncio.gather(*map(_stop_drawing, drawings))

    async def cancel(self, job_id: str) -> None:
        """Stop drawing a job, if it is drawn here; returns when its images have left the batch."""
        if (drawing := self._drawings.get(job_id)) is not None:
            await _stop_drawing(drawing)

    async def check(self) -> None:
        """Renew the leases that are due, and stop drawing what is lost. Raises `JobsUnavailable`."""
        drawings = list(self._drawings.values())
        if not drawings:
            return
        attempts = await self._leases.attempts([drawing.job.id for drawing in drawings])
        for drawing in drawings:
            is_held = attempts.get(drawing.job.id) == drawing.job.attempt
            if is_held and time.monotonic() - drawing.renewed >= RENEW_SECONDS:
                is_held = await self._leases.renew(drawing.job, drawing.steps_done())
                drawing.renewed = time.monotonic()
            if not is_held:
                await _stop_drawing(drawing)

    async def stop(self, is_end: bool = False) -> None:
        """Claim nothing more, and give jobs back; if `is_end`, also those whose callers wait."""
        self._is_stopping = True
        drawings = [
            drawing for drawing in self._drawings.values() if is_end or not drawing.job.is_interactive
        ]
        for drawing in drawings:
            drawing.is_given_back = True
        await asyncio.gather(*map(_stop_drawing, drawings))

    def _has_room(self) -> bool:
        jobs = [drawing.job for drawing in self._drawings.values()]
        num_drawn = sum(job.batch is None and not job.is_interactive for job in jobs)
        return not self._is_stopping and num_drawn < self._concurrency

    def _line_room(self) -> int:
        """How many more images of lines may be drawn."""
        jobs = [drawing.job for drawing in self._drawings.values()]
        num_drawn = sum(job.num_images for job in jobs if job.batch is not None)
        return 0 if self._is_stopping else self._max_line_images - num_drawn

    async def _run(self, drawing: Drawing) -> None:
        """Draw a job to its end, or give it back."""
        job = drawing.job
        try:
            if job.kind == EDIT:
                drawing.upload = await self._load_upload(job)
            await self._draw(drawing, lambda result: self._end(drawing, result))
        except asyncio.CancelledError:
            if drawing.is_given_back:
                await self._settle(job, None)
            raise
        except LeaseLost:
            pass
        except Exception as error:
            await self._settle(job, as_service_error(error))
        finally:
            if self._drawings.get(job.id) is drawing:  # else its next attempt is drawn here already
                del self._drawings[job.id]
            self._on_end()

    async def _load_upload(self, job: Job) -> Upload:
        """The files of an edit. Raises `LeaseLost`: they go with the end of the job."""
        files = await self._leases.upload(job)
        if files is None:
            raise LeaseLost()
        image, mask = files
        return Upload(image, mask, job.work.upload_size, job.work.upload_sizes)

    async def _end(self, drawing: Drawing, result: JobResult) -> None:
        drawing.is_ending = True  # the fence says whether it is too late
        if not await self._leases.end(drawing.job, result):
            raise LeaseLost()

    async def _settle(self, job: Job, error: ServiceError | None) -> None:
        """Give a job back, at once without an error, or end it with the error."""
        try:
            if error is None:
                await self._leases.release(job)
            elif isinstance(error, _busy_errors(job)):
                delay = max(BUSY_SECONDS, float(error.retry_after or 0))
                await self._leases.release(job, min(delay, MAX_BACKOFF_SECONDS))
            elif is_final(job, error):
                await self._leases.end(job, JobError.of(error))
            else:
                delay = min(2.0 ** (job.failures + 1), MAX_BACKOFF_SECONDS)
                await self._leases.release(job, delay, has_failed=True)
        except ServiceError as failure:  # the lease ends by itself
            logger.warning("a job could not be given back: %s (%s)", failure, failure.__cause__)


async def _stop_drawing(drawing: Drawing) -> None:
    """Stop a drawing, or wait for its end if that is being written: it must not be recorded as cancelled."""
    assert drawing.task is not None
    if drawing.is_ending:
        await asyncio.wait({drawing.task})
    else:
        await cancel_and_wait(drawing.task)


def _busy_errors(job: Job) -> tuple[type[ServiceError], ...]:
    """The errors after which a job waits without having failed."""
    if job.batch is not None:
        return BUSY_LINE_ERRORS
    return () if job.is_interactive else BUSY_ERRORS


def is_final(job: Job, error: ServiceError) -> bool:
    """Whether a job ends with an error: that of a caller who waits is its answer."""
    if job.is_interactive or isinstance(error, FINAL_ERRORS):
        return True
    return job.failures + 1 >= MAX_FAILURES
