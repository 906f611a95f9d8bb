"""The batches of one gateway, beside its jobs: their stores, and the loop that moves them on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.service.batches.batch import Batch, BatchRequest, BatchStatus
from safelight.service.jobs.queue import POLL_SECONDS, SWEEP_SECONDS, JobQueue, OpenQueue, repeat
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from safelight.service.batches.batch_store import BatchStore
    from safelight.service.batches.file_store import FileStore
    from safelight.service.batches.input_lines import InputLine
    from safelight.service.batches.keeper import BatchKeeper
    from safelight.service.jobs.batch_lines import BatchLines
    from safelight.service.jobs.job import Job, Line


@dataclass(frozen=True)
class OpenBatches:
    """The parts that need the database."""

    batches: BatchStore
    files: FileStore
    lines: BatchLines
    keeper: BatchKeeper


class BatchQueue:
    """Submits batches, and works on them.

    Args:
        settings: The service's settings.
        jobs: Draws the lines.
        read_line: Returns what a line of the input draws, or why it does not.
        write_line: Returns the line of the output for one that has ended.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: JobQueue,
        read_line: Callable[[Batch, InputLine], Awaitable[Line]],
        write_line: Callable[[Batch, Job], Awaitable[bytes]],
    ):
        self._settings = settings
        self._jobs = jobs
        self._read_line = read_line
        self._write_line = write_line
        self._open: OpenBatches | None = None
        self._wake = asyncio.Event()

    async def open(self) -> OpenBatches:
        """The parts that need the database. Raises `JobsUnavailable`."""
        return self._connect(await self._jobs.open())

    async def submit(self, request: BatchRequest) -> Batch:
        """Keep a batch, whose lines are read next. Raises `FileMissing` or `TooManyBatches`."""
        parts = await self.open()
        await parts.files.get(request.input_file, request.caller)
        batch = await parts.batches.submit(request)
        self._wake.set()
        return batch

    async def cancel(self, batch_id: str, caller: str) -> Batch:
        """Begin to cancel a batch, whose images leave the denoiser's batch. Raises `BatchNotFound`."""
        parts = await self.open()
        batch = await parts.batches.cancel(batch_id, caller)
        if batch.status is BatchStatus.CANCELLING:
            await (await self._jobs.open()).runner.cancel_batch(batch_id)
        self._wake.set()
        return batch

    def stop(self) -> None:
        """Leave batches to other gateways."""
        if self._open is not None:
            self._open.keeper.stop()

    async def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Open batches by status, and their lines by state; none before there is a database."""
        if self._open is None:
            return {}, {}
        return await self._open.batches.counts(), await self._open.lines.open_counts()

    async def run(self) -> None:
        """Work on batches until the task is cancelled, from when there is a database."""
        parts = self._connect(await self._jobs.when_open())

        async def advance() -> None:
            if await parts.keeper.advance():
                self._jobs.wake()  # there are lines to draw, or messages to send

        await asyncio.gather(
            repeat(advance, POLL_SECONDS, self._wake),
            repeat(parts.keeper.sweep, SWEEP_SECONDS, asyncio.Event()),
        )

    def _connect(self, queue: OpenQueue) -> OpenBatches:
        if self._open is None:
            from safelight.service.batches.batch_store import BatchStore
            from safelight.service.batches.file_store import FileStore
            from safelight.service.batches.keeper import BatchKeeper

            settings = self._settings
            batches = BatchStore(queue.table, settings.max_batches_per_key)
            files = FileStore(queue.table, settings.max_files_bytes)
            keeper = BatchKeeper(
                batches,
                files,
                queue.lines,
                self._read_line,
                self._write_line,
                self._jobs.owner,
                settings.max_batch_lines,
                queue.runner.cancel_batch,
            )
            self._open = OpenBatches(batches, files, queue.lines, keeper)
        return self._open
