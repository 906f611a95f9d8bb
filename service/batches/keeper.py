"""Moves batches on in one gateway: reads their lines, ends them, and makes their output known."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from safelight.service.batches.batch import Batch, BatchStatus, InputFault
from safelight.service.batches.batch_store import BatchStore
from safelight.service.batches.file_store import FileStore
from safelight.service.batches.input_lines import BadInput, InputLine, parse_input
from safelight.service.errors import FileMissing
from safelight.service.jobs.batch_lines import BatchLines
from safelight.service.jobs.job import Job, Line

logger = logging.getLogger(__name__)

CHUNK = 50  # lines that are kept in one transaction
RENEW_SECONDS = 5.0

ReadLine = Callable[[Batch, InputLine], Awaitable[Line]]
WriteLine = Callable[[Batch, Job], Awaitable[bytes]]


class BatchKeeper:
    """Works on batches that no other gateway works on.

    Args:
        batches: The batches.
        files: Have their input.
        lines: The lines of batches.
        read_line: Returns what a line of the input draws, or why it does not.
        write_line: Returns the line of the output for one that has ended.
        owner: The gateway, in leases.
        max_lines: The most of a batch.
        on_end: Called with the id of a batch whose lines are not drawn any more.
    """

    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        lines: BatchLines,
        read_line: ReadLine,
        write_line: WriteLine,
        owner: str,
        max_lines: int,
        on_end: Callable[[str], Awaitable[None]],
    ):
        self._batches = batches
        self._files = files
        self._lines = lines
        self._read_line = read_line
        self._write_line = write_line
        self._owner = owner
        self._max_lines = max_lines
        self._on_end = on_end
        self._is_stopping = False

    def stop(self) -> None:
        """Leave all work to other gateways, after the lines that are at hand."""
        self._is_stopping = True

    async def advance(self) -> bool:
        """Do what can be done now, and say whether that was anything. Raises `ServiceError`."""
        if not await self._batches.has_work():
            return False
        for batch_id in await self._batches.close_finished():
            await self._on_end(batch_id)
        has_worked = False
        while not self._is_stopping and (batch := await self._batches.claim(self._owner)) is not None:
            has_worked = True
            if batch.status is BatchStatus.VALIDATING:
                await self._read(batch)
            else:
                await self._on_end(batch.id)
                await self._finish(batch)
            logger.info("batch", extra={"fields": {"batch": batch.id, "from": batch.status.value}})
        return has_worked

    async def sweep(self) -> None:
        """Delete batches and files whose time is over."""
        await self._files.sweep()
        await self._batches.sweep()

    async def _read(self, batch: Batch) -> None:
        """Keep the lines of a batch, or end it if its input has faults; goes on where another has stopped."""
        try:
            file = await self._files.get(batch.input_file, batch.caller)
            content = await self._files.content(file)
            lines = await asyncio.to_thread(parse_input, content, batch.endpoint, self._max_lines)
        except FileMissing as error:
            await self._batches.fail(batch, [InputFault("file_not_found", str(error), param="input_file_id")])
            return
        except BadInput as error:
            await self._batches.fail(batch, error.faults)
            return
        last = await self._lines.last_number(batch.id)
        lines = [line for line in lines if line.number > last]
        for start in range(0, len(lines), CHUNK):
            chunk = [await self._read_line(batch, line) for line in lines[start : start + CHUNK]]
            if not await self._batches.add_lines(batch, chunk) or self._is_stopping:
                return
        await self._batches.begin(batch, await self._lines.max_images(batch.id))

    async def _finish(self, batch: Batch) -> None:
        """End a batch: its output is made once to know its size, and again whenever it is read."""
        sizes = {True: 0, False: 0}
        renewed = time.monotonic()
        for is_output in sizes:
            async for job in self._lines.of(batch.id, is_output):
                sizes[is_output] += len(await self._write_line(batch, job))
                if self._is_stopping:
                    return
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    if not await self._batches.renew(batch):
                        return
                    renewed = time.monotonic()
        await self._batches.finish(batch, sizes[True], sizes[False])
