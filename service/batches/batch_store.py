"""Batches as their callers see them, and as gateways work on them: submitted, listed, cancelled, ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from secrets import token_hex
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy import func as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.batches.batch import (
    DAY,
    OPEN_STATUSES,
    Batch,
    BatchRequest,
    BatchStatus,
    InputFault,
)
from safelight.service.batches.file_store import UPLOAD_SECONDS
from safelight.service.batches.stored_file import OUTPUT_PURPOSE
from safelight.service.database.tables import batches, files
from safelight.service.errors import BatchNotFound, TooManyBatches
from safelight.service.jobs.batch_lines import add_lines, end_open_lines, has_open_lines
from safelight.service.jobs.job import JobState, Line
from safelight.service.jobs.job_table import LEASE_SECONDS, JobDatabase
from safelight.service.jobs.outbox import put_message

LOCK = "batches"  # of submissions
FREE: dict[str, None] = {"lease_owner": None, "lease_until": None}
# In these a gateway works on the batch itself.
WORKED_ON = (BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING)


class BatchStore:
    """The batches in a database. Every method raises `JobsUnavailable` if that cannot be used.

    Args:
        database: Of the jobs.
        max_open: Most batches of a caller that have not ended.
    """

    def __init__(self, database: JobDatabase, max_open: int):
        self._database = database
        self._max_open = max_open

    async def submit(self, request: BatchRequest) -> Batch:
        """Keep a new batch. Raises `TooManyBatches`."""
        now = self._database.clock()
        values = asdict(request) | {
            "id": f"batch_{token_hex(12)}",
            "metadata": None if request.metadata is None else json.dumps(request.metadata),
            "status": BatchStatus.VALIDATING,
            "outcome": BatchStatus.COMPLETED,
            "max_images": 0,
            "created": now,
            "expires": now + DAY,
            "kept_until": now + DAY + request.output_seconds,
        }
        async with self._database.writing(LOCK) as connection:
            is_open = batches.c.caller == request.caller, batches.c.status.in_(OPEN_STATUSES)
            count = await connection.scalar(select(sql.count()).select_from(batches).where(*is_open))
            if int(count or 0) >= self._max_open:
                raise TooManyBatches(
                    f"Too many of your batches have not ended: at most {self._max_open} may be open."
                )
            await connection.execute(insert(batches).values(values))
            return await _get(connection, values["id"])

    async def get(self, batch_id: str, caller: str) -> Batch:
        """A batch of this caller. Raises `BatchNotFound`."""
        async with self._database.reading() as connection:
            return await _get(connection, batch_id, batches.c.caller == caller)

    async def list_page(self, caller: str, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """Batches of a caller, the newest first, and whether there are more. Raises `BatchNotFound`."""
        where = [batches.c.caller == caller]
        async with self._database.reading() as connection:
            if after is not None:
                last = await _get(connection, after, batches.c.caller == caller)
                is_same_time = and_(batches.c.created == last.created, batches.c.id < last.id)
                where.append(or_(batches.c.created < last.created, is_same_time))
            order = batches.c.created.desc(), batches.c.id.desc()
            query = select(batches).where(*where).order_by(*order).limit(limit + 1)
            rows = (await connection.execute(query)).mappings().all()
        return [Batch.from_row(row) for row in rows[:limit]], len(rows) > limit

    async def cancel(self, batch_id: str, caller: str) -> Batch:
        """Begin to cancel a batch whose lines are read or drawn. Raises `BatchNotFound`.

        One whose output is made, or that has ended, stays as it is.
        """
        now = self._database.clock()
        values = {"status": BatchStatus.CANCELLING, "outcome": BatchStatus.CANCELLED, "cancelling": now}
        async with self._database.writing() as connection:
            batch = await _get(connection, batch_id, batches.c.caller == caller)
            if batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                await _update(connection, batches.c.id == batch.id, values | FREE)
                await end_open_lines(connection, batch.id, JobState.CANCELLED, now)
            return await _get(connection, batch_id)

    async def counts(self) -> dict[str, int]:
        """How many batches are in each status in which they are open."""
        query = (
            select(batches.c.status, sql.count())
            .where(batches.c.status.in_(OPEN_STATUSES))
            .group_by(batches.c.status)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        counts = {row[0]: row[1] for row in rows}
        return {status.value: counts.get(status, 0) for status in OPEN_STATUSES}

    async def has_work(self) -> bool:
        """Whether there is a batch that is open."""
        async with self._database.reading() as connection:
            query = select(batches.c.id).where(batches.c.status.in_(OPEN_STATUSES)).limit(1)
            return await connection.scalar(query) is not None

    async def close_finished(self) -> list[str]:
        """Stop drawing batches whose lines have all ended, or whose time is over; returns their ids."""
        now, ids = self._database.clock(), list[str]()
        async with self._database.writing() as connection:
            query = select(batches).where(batches.c.status == BatchStatus.IN_PROGRESS)
            for row in (await connection.execute(query)).mappings().all():
                batch = Batch.from_row(row)
                is_expired = batch.expires <= now and await has_open_lines(connection, batch.id)
                if is_expired:
                    await end_open_lines(connection, batch.id, JobState.EXPIRED, now)
                elif await has_open_lines(connection, batch.id):
                    continue
                outcome = BatchStatus.EXPIRED if is_expired else BatchStatus.COMPLETED
                values = {"status": BatchStatus.FINALIZING, "outcome": outcome, "finalizing": now}
                await _update(connection, batches.c.id == batch.id, values | FREE)
                ids.append(batch.id)
        return ids

    async def claim(self, owner: str) -> Batch | None:
        """Take a batch whose lines are to be read, or whose output is to be made, for `LEASE_SECONDS`."""
        now = self._database.clock()
        is_free = or_(batches.c.lease_until.is_(None), batches.c.lease_until <= now)
        next_id = (
            select(batches.c.id)
            .where(batches.c.status.in_(WORKED_ON), is_free)
            .order_by(batches.c.created)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        query = (
            update(batches)
            .where(batches.c.id == next_id.scalar_subquery())
            .values(lease_owner=owner, lease_until=now + LEASE_SECONDS)
            .returning(*batches.c)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(query)).mappings().first()
            return None if row is None else Batch.from_row(row)

    async def renew(self, batch: Batch) -> bool:
        """Hold a batch for longer; False if it is another gateway's, or was cancelled."""
        values = {"lease_until": self._database.clock() + LEASE_SECONDS}
        async with self._database.writing() as connection:
            return await _update(connection, _is_held(batch), values)

    async def add_lines(self, batch: Batch, lines: Sequence[Line]) -> bool:
        """Keep lines of a batch that is being read; False if it is not this gateway's any more."""
        now = self._database.clock()
        values = {"lease_until": now + LEASE_SECONDS}
        async with self._database.writing(seconds=UPLOAD_SECONDS) as connection:
            if not await _update(connection, _is_held(batch), values):
                return False
            await add_lines(connection, batch.id, lines, now, batch.kept_until)
            return True

    async def begin(self, batch: Batch, max_images: int) -> bool:
        """Let the lines of a batch be drawn, now that all are kept; `max_images` is the most of one line."""
        values = {
            "status": BatchStatus.IN_PROGRESS,
            "started": self._database.clock(),
            "max_images": max_images,
        }
        async with self._database.writing() as connection:
            return await _update(connection, _is_held(batch), values | FREE)

    async def fail(self, batch: Batch, faults: Sequence[InputFault]) -> bool:
        """End a batch whose input file has faults."""
        errors = json.dumps([asdict(fault) for fault in faults])
        return await self._end(batch, BatchStatus.FAILED, {"errors": errors}, [])

    async def finish(self, batch: Batch, output_bytes: int, error_bytes: int) -> bool:
        """End a batch with the files of its output; one of no bytes is none."""
        sizes = {"output": output_bytes, "error": error_bytes}
        rows = [self._file(batch, kind, num_bytes) for kind, num_bytes in sizes.items() if num_bytes]
        ids = {f"{kind}_file": output_file_id(batch, kind) for kind, num_bytes in sizes.items() if num_bytes}
        return await self._end(batch, batch.outcome, ids, rows)

    async def sweep(self) -> None:
        """Delete the batches whose time is over."""
        is_over = batches.c.kept_until <= self._database.clock()
        async with self._database.writing() as connection:
            await connection.execute(delete(batches).where(is_over))

    def _file(self, batch: Batch, kind: str, num_bytes: int) -> dict[str, Any]:
        """The columns of a file of output."""
        now = self._database.clock()
        return {
            "id": output_file_id(batch, kind),
            "caller": batch.caller,
            "filename": f"{batch.id}_{kind}.jsonl",
            "purpose": OUTPUT_PURPOSE,
            "num_bytes": num_bytes,
            "created": now,
            "expires": min(now + batch.output_seconds, batch.kept_until),
            "batch": batch.id,
        }

    async def _end(
        self,
        batch: Batch,
        status: BatchStatus,
        values: Mapping[str, Any],
        output_files: Sequence[Mapping[str, Any]],
    ) -> bool:
        """End a batch with the message to its receiver; False if it is not this gateway's any more."""
        now = self._database.clock()
        ended = {"status": status, "ended": now, **FREE, **values}
        async with self._database.writing() as connection:
            if not await _update(connection, _is_held(batch), ended):
                return False
            for row in output_files:
                await connection.execute(insert(files).values(row))
            if batch.webhook is not None:
                await put_message(connection, batch.webhook, f"batch.{status}", batch.id, now)
            return True


def output_file_id(batch: Batch, kind: str) -> str:
    """The id of a file of output: that of `output`, or of `error`."""
    return f"file-{batch.id.removeprefix('batch_')}-{kind}"


def _is_held(batch: Batch) -> ColumnElement[bool]:
    """The fence: whether the batch is still this gateway's, in the status in which it was claimed."""
    return and_(
        batches.c.id == batch.id,
        batches.c.lease_owner == batch.lease_owner,
        batches.c.status == batch.status,
    )


async def _update(connection: AsyncConnection, where: ColumnElement[bool], values: Mapping[str, Any]) -> bool:
    answer = await connection.execute(update(batches).where(where).values(**values))
    return answer.rowcount == 1


async def _get(connection: AsyncConnection, batch_id: str, *where: ColumnElement[bool]) -> Batch:
    """Raises `BatchNotFound`."""
    query = select(batches).where(batches.c.id == batch_id, *where)
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        raise BatchNotFound()
    return Batch.from_row(row)
