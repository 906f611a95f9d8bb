"""The jobs of one gateway: the database, opened when it is first used, and the loops that draw and tell.

SQLAlchemy loads with the database, so that a service whose callers send no jobs has none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

from safelight.service.database.locations import DatabaseLocation, find_database
from safelight.service.errors import DeadlineExceeded, JobsUnavailable, ServiceError
from safelight.service.jobs.drawing import Draw, Drawing
from safelight.service.jobs.job import Job, Submission
from safelight.service.runtime.asyncio_tasks import uninterrupted
from safelight.service.setting_types import names_in
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from safelight.service.database.connection import Database
    from safelight.service.jobs.batch_lines import BatchLines
    from safelight.service.jobs.job_store import JobStore
    from safelight.service.jobs.job_table import JobDatabase
    from safelight.service.jobs.leases import JobLeases
    from safelight.service.jobs.runner import JobRunner
    from safelight.service.jobs.webhooks import WebhookSender

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # between two looks for jobs that other gateways have submitted
WATCH_SECONDS = 1.0  # between two looks whether jobs that are drawn here were cancelled elsewhere
SWEEP_SECONDS = 60.0
WAIT_SECONDS = 0.5  # between two looks whether a job that is drawn elsewhere has ended


@dataclass(frozen=True)
class OpenQueue:
    """The parts that need the database."""

    database: Database
    table: JobDatabase
    store: JobStore
    lines: BatchLines
    leases: JobLeases
    runner: JobRunner
    sender: WebhookSender | None  # None: there are no webhooks


class JobQueue:
    """Submits, draws and ends jobs.

    Args:
        settings: The service's settings.
        draw: Draws one job.
        clock: Returns the current Unix time.
    """

    def __init__(self, settings: Settings, draw: Draw, clock: Callable[[], float] = time.time):
        self._settings = settings
        self._draw = draw
        self._clock = clock
        self.owner = token_hex(8)
        self._queue: OpenQueue | None = None
        self._is_open = asyncio.Event()
        self._opening = asyncio.Lock()
        self._wake = asyncio.Event()
        self._wake_sender = asyncio.Event()

    async def open(self) -> OpenQueue:
        """The parts that need the database, which is brought up to date. Raises `JobsUnavailable`."""
        async with self._opening:
            if self._queue is None:
                from safelight.service.database.connection import DatabaseFailed
                from safelight.service.database.migrate import migrate

                try:
                    location = self._location()
                    await migrate(location)
                except (DatabaseFailed, RuntimeError) as error:
                    raise JobsUnavailable() from error
                self._queue = self._connect(location)
                self._is_open.set()
            return self._queue

    async def when_open(self) -> OpenQueue:
        """The parts that need the database, as soon as somebody has opened it."""
        await self._is_open.wait()
        return await self.open()

    async def submit(self, submission: Submission, admit: Callable[[], Awaitable[None]]) -> Job:
        """Keep a job, unless one is kept under its idempotency key; that of a waiting caller is begun.

        Args:
            submission: The job.
            admit: Raises the error of a caller who may not submit a new one.

        Raises:
            KeyReused: The idempotency key stands for another request.
            TooManyJobs: Too many jobs are open.
            JobsUnavailable: The database cannot be used.
        """
        queue = await self.open()
        if (job := await queue.store.find_submitted(submission)) is not None:
            return job
        await admit()
        job, is_new = await queue.store.submit(submission, self.owner)
        if is_new and submission.is_interactive:
            queue.runner.start(job)
        self._wake.set()
        return job

    async def wait(self, job: Job) -> Job:
        """The job when it has ended, wherever it is drawn. Raises `DeadlineExceeded`: it goes on."""
        queue = await self.open()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.deadline_seconds):
                while job.is_open:
                    await self._pause(queue, job.id)
                    job = await queue.store.get(job.id, None)
                return job
        raise DeadlineExceeded()

    async def cancel(self, job_id: str, caller: str) -> Job:
        """Cancel a job, whose images leave the batch. Raises `JobNotFound`."""
        queue = await self.open()
        job = await queue.store.cancel(job_id, caller)
        await queue.runner.cancel(job_id)
        self._wake_sender.set()
        return job

    async def run(self) -> None:
        """Draw jobs until the task is cancelled, from when there is a database."""
        while self._queue is None:
            if self._is_in_use():
                with contextlib.suppress(JobsUnavailable):  # PostgreSQL may start after the service
                    await uninterrupted(self.open())
                    break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
        queue = await uninterrupted(self.open())
        loops = [
            repeat(queue.runner.fill, POLL_SECONDS, self._wake),
            repeat(queue.leases.sweep, SWEEP_SECONDS, asyncio.Event()),
            repeat(queue.runner.check, WATCH_SECONDS, asyncio.Event()),  # a lease outlasts short outages
        ]
        if queue.sender is not None:
            loops.append(repeat(queue.sender.send_due, POLL_SECONDS, self._wake_sender))
        await asyncio.gather(*loops)

    def find_drawing(self, job: Job) -> Drawing | None:
        """The drawing of this attempt at a job, if it is drawn here."""
        drawing = None if self._queue is None else self._queue.runner.find(job.id)
        return drawing if drawing is not None and drawing.job.attempt == job.attempt else None

    def wake(self) -> None:
        """Look for work, and for messages to send."""
        self._wake.set()
        self._wake_sender.set()

    async def stop(self) -> None:
        """Claim nothing more, and give back jobs for which nobody waits: other gateways go on with them."""
        if self._queue is not None:
            await self._queue.runner.stop()

    async def close(self) -> None:
        """Give back all that is still drawn, and leave the database."""
        if self._queue is not None:
            await self._queue.runner.stop(is_end=True)
            await self._queue.database.close()

    def _location(self) -> DatabaseLocation:
        """Raises `RuntimeError` if this user has no home folder, and no database is set."""
        return find_database(self._settings.database.get_secret_value())

    def _is_in_use(self) -> bool:
        """Whether there is a database, made by this gateway or before."""
        with contextlib.suppress(RuntimeError, OSError):
            file = self._location().file
            return file is None or file.exists()
        return False

    def _connect(self, location: DatabaseLocation) -> OpenQueue:
        from safelight.service.database.connection import Database
        from safelight.service.jobs.batch_lines import BatchLines
        from safelight.service.jobs.job_store import JobLimits, JobStore
        from safelight.service.jobs.job_table import JobDatabase
        from safelight.service.jobs.leases import JobLeases
        from safelight.service.jobs.runner import JobRunner

        settings, database = self._settings, Database(location)
        limits = JobLimits(
            settings.max_jobs,
            settings.max_jobs_per_key,
            settings.max_job_upload_bytes,
            settings.job_seconds,
        )
        table = JobDatabase(database, self._clock)
        leases, lines = JobLeases(table, settings.job_seconds), BatchLines(table)
        runner = JobRunner(
            leases, self._draw, self.owner, settings.job_concurrency, lines, settings.line_images, self.wake
        )
        origins = names_in(settings.webhook_origins)
        sender = None
        if origins:
            from safelight.service.jobs.webhooks import WebhookSender

            sender = WebhookSender(table, origins, settings.webhook_secret.get_secret_value())
        return OpenQueue(database, table, JobStore(table, limits), lines, leases, runner, sender)

    async def _pause(self, queue: OpenQueue, job_id: str) -> None:
        """Wait until the job has ended, or for a moment if it is drawn elsewhere."""
        drawing = queue.runner.find(job_id)
        if drawing is not None and drawing.task is not None:
            await asyncio.wait({drawing.task}, timeout=WAIT_SECONDS)
        else:
            await asyncio.sleep(WAIT_SECONDS)


async def repeat(work: Callable[[], Awaitable[object]], seconds: float, wake: asyncio.Event) -> None:
    """Do `work` again and again, at the latest after `seconds` and when `wake` is set."""
    while True:
        wake.clear()
        try:
            await uninterrupted(work())
        except ServiceError as error:
            logger.warning("jobs: %s (%s)", error, error.__cause__)
        except Exception:
            logger.exception("jobs: an error that was not foreseen")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), seconds)
