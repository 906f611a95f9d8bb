"""The lines of batches: jobs of the lowest priority, of which gateways claim a few at a time."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, insert, select, update
from sqlalchemy import func as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.tables import batches, job_uploads, jobs
from safelight.service.jobs.job import (
    BATCH_PRIORITY,
    IN_PROGRESS,
    OPEN_STATES,
    Job,
    JobState,
    Line,
)
from safelight.service.jobs.job_store import job_values, keep_upload
from safelight.service.jobs.job_table import MAX_FAILURES, JobDatabase, claimed, is_claimable

PAGE = 20  # lines that are read at a time: some have their images


class BatchLines:
    """The lines of all batches. Every method raises `JobsUnavailable` if the database cannot be used."""

    def __init__(self, database: JobDatabase):
        self._database = database

    async def has_claimable(self) -> bool:
        """Whether a line can be claimed."""
        async with self._database.reading() as connection:
            query = select(batches.c.id).where(_has_next(self._database.clock())).limit(1)
            return await connection.scalar(query) is not None

    async def claim(self, owner: str, room: int) -> list[Job]:
        """Take lines of one batch with about `room` images in all, at least one line.

        The caller of whose lines the fewest are drawn comes first, then the oldest batch.
        """
        now = self._database.clock()
        is_running = and_(jobs.c.state == JobState.RUNNING, jobs.c.batch.is_not(None))
        num_running = (
            select(sql.count(jobs.c.id))
            .where(is_running, jobs.c.caller == batches.c.caller)
            .scalar_subquery()
        )
        next_batch = (
            select(batches.c.id, batches.c.max_images)
            .where(_has_next(now))
            .order_by(num_running, batches.c.created, batches.c.id)
            .limit(1)
        )
        async with self._database.writing() as connection:
            batch = (await connection.execute(next_batch)).first()
            if batch is None:
                return []
            ids = (
                select(jobs.c.id)
                .where(jobs.c.batch == batch.id, is_claimable(now, MAX_FAILURES))
                .order_by(jobs.c.line)
                .limit(max(1, room // max(1, batch.max_images)))
                .with_for_update(skip_locked=True)  # as in JobLeases.claim
            )
            query = update(jobs).where(jobs.c.id.in_(ids)).values(**claimed(owner, now)).returning(*jobs.c)
            rows = (await connection.execute(query)).mappings().all()
        return sorted((Job.from_row(row) for row in rows), key=lambda job: job.line or 0)

    async def last_number(self, batch_id: str) -> int:
        """The number of the last line of a batch that is kept, 0 without any."""
        async with self._database.reading() as connection:
            query = select(sql.max(jobs.c.line)).where(jobs.c.batch == batch_id)
            return int(await connection.scalar(query) or 0)

    async def max_images(self, batch_id: str) -> int:
        """The most images of one line of a batch."""
        async with self._database.reading() as connection:
            query = select(sql.max(jobs.c.num_images)).where(jobs.c.batch == batch_id)
            return int(await connection.scalar(query) or 0)

    async def counts(self, batch_ids: Collection[str]) -> dict[str, dict[JobState, int]]:
        """How many lines of each batch are in each state."""
        counts: dict[str, dict[JobState, int]] = {batch_id: {} for batch_id in batch_ids}
        query = (
            select(jobs.c.batch, jobs.c.state, sql.count())
            .where(jobs.c.batch.in_(batch_ids))
            .group_by(jobs.c.batch, jobs.c.state)
        )
        async with self._database.reading() as connection:
            for batch_id, state, count in await connection.execute(query):
                counts[batch_id][JobState(state)] = count
        return counts

    async def open_counts(self) -> dict[str, int]:
        """How many lines of all batches are queued and running."""
        is_open = jobs.c.batch.is_not(None), jobs.c.state.in_(OPEN_STATES)
        query = select(jobs.c.state, sql.count()).where(*is_open).group_by(jobs.c.state)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        counts = {row[0]: row[1] for row in rows}
        return {state.value: counts.get(state, 0) for state in OPEN_STATES}

    async def of(self, batch_id: str, is_output: bool) -> AsyncIterator[Job]:
        """The lines of a batch that are done, or those that have failed, in order."""
        is_done = jobs.c.result.is_not(None)
        where = and_(jobs.c.batch == batch_id, is_done if is_output else ~is_done)
        last = 0
        while True:
            query = select(jobs).where(where, jobs.c.line > last).order_by(jobs.c.line).limit(PAGE)
            async with self._database.reading() as connection:
                rows = (await connection.execute(query)).mappings().all()
            if not rows:
                return
            last = rows[-1]["line"]
            for row in rows:
                yield Job.from_row(row)


async def add_lines(
    connection: AsyncConnection, batch_id: str, lines: Sequence[Line], now: float, expires: float
) -> None:
    """Keep lines of a batch, in a transaction that writes."""
    for line in lines:
        values = job_values(line.submission, now, expires) | {
            "priority": BATCH_PRIORITY,
            "batch": batch_id,
            "line": line.number,
            "custom_id": line.custom_id,
        }
        if line.error is not None:
            values |= {"state": JobState.FAILED, "ended": now, "error": line.error.to_json()}
        await connection.execute(insert(jobs).values(values))
        if line.submission.upload is not None and line.error is None:
            await keep_upload(connection, values["id"], line.submission.upload)


async def end_open_lines(connection: AsyncConnection, batch_id: str, state: JobState, now: float) -> None:
    """End the lines of a batch that are not drawn yet, in a transaction that writes."""
    is_open = and_(jobs.c.batch == batch_id, jobs.c.state.in_(OPEN_STATES))
    uploads = select(jobs.c.id).where(is_open)
    await connection.execute(delete(job_uploads).where(job_uploads.c.job_id.in_(uploads)))
    values: Mapping[str, Any] = {"state": state, "ended": now, "lease_owner": None, "lease_until": None}
    await connection.execute(update(jobs).where(is_open).values(**values))


async def has_open_lines(connection: AsyncConnection, batch_id: str) -> bool:
    """Whether a line of a batch has not ended."""
    is_open = and_(jobs.c.batch == batch_id, jobs.c.state.in_(OPEN_STATES))
    return await connection.scalar(select(jobs.c.id).where(is_open).limit(1)) is not None


def _has_next(now: float) -> ColumnElement[bool]:
    """Whether a batch has a line that may be drawn."""
    is_next = and_(jobs.c.batch == batches.c.id, is_claimable(now, MAX_FAILURES))
    is_under_way = and_(batches.c.status == IN_PROGRESS, batches.c.expires > now)
    return and_(is_under_way, exists(select(jobs.c.id).where(is_next)))
