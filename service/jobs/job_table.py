"""What all uses of the table of jobs have in common: connections, conditions, rows, and the end of a job."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, or_, select, update
from sqlalchemy import func as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.tables import job_uploads, jobs
from safelight.service.errors import JobNotFound, JobsUnavailable
from safelight.service.jobs.job import Job, JobState
from safelight.service.jobs.outbox import put_message

LOCK = "jobs"  # of submissions and of the sweep, of which one runs at a time
SECONDS = 5.0  # of one use of the database
LEASE_SECONDS = 15.0
# Of a job that fails, loses its stage, or its gateway: then it is not drawn again.
MAX_FAILURES = 5
MAX_LEASE_SECONDS = 60.0  # a lease that ends later is from before the clock was set back
WITHOUT_KEY: dict[str, None] = {"idempotency_key": None, "idempotency_until": None}


class JobDatabase:
    """The database of jobs, whose failures are those of the service.

    Args:
        database: Has been migrated.
        clock: Returns the current Unix time.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self._database = database
        self.clock = clock

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that reads. Raises `JobsUnavailable`."""
        try:
            async with self._database.read() as connection:
                yield connection
        except DatabaseFailed as error:
            raise JobsUnavailable() from error

    @asynccontextmanager
    async def writing(self, lock: str = "", seconds: float = SECONDS) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that writes, as `Database.write`. Raises `JobsUnavailable`."""
        try:
            async with self._database.write(lock, seconds) as connection:
                yield connection
        except DatabaseFailed as error:
            raise JobsUnavailable() from error


def has_lost_lease(now: float) -> ColumnElement[bool]:
    """Whether the gateway that draws a job has not renewed its lease in time."""
    until = jobs.c.lease_until
    return and_(jobs.c.state == JobState.RUNNING, or_(until <= now, until > now + MAX_LEASE_SECONDS))


def is_claimable(now: float, max_failures: int) -> ColumnElement[bool]:
    """Whether a job may be drawn now: a queued one, or one whose lease has ended."""
    is_queued = and_(jobs.c.state == JobState.QUEUED, jobs.c.due <= now)
    is_lost = and_(has_lost_lease(now), jobs.c.failures < max_failures)
    return and_(or_(is_queued, is_lost), jobs.c.expires > now)


def claimed(owner: str, now: float) -> dict[str, Any]:
    """The columns of a job that the gateway `owner` claims."""
    return {
        # a lease that has ended was of a gateway that was lost, maybe because of this job
        "failures": jobs.c.failures + case((jobs.c.state == JobState.RUNNING, 1), else_=0),
        "state": JobState.RUNNING,
        "attempt": jobs.c.attempt + 1,
        "lease_owner": owner,
        "lease_until": now + LEASE_SECONDS,
        "started": sql.coalesce(jobs.c.started, now),
    }


def is_held(job: Job) -> ColumnElement[bool]:
    """The fence: whether it is still this attempt that draws the job."""
    return and_(jobs.c.id == job.id, jobs.c.attempt == job.attempt, jobs.c.state == JobState.RUNNING)


async def find_jobs(connection: AsyncConnection, *where: ColumnElement[bool]) -> list[Job]:
    """The jobs for which all of `where` holds."""
    rows = await connection.execute(select(jobs).where(*where))
    return [Job.from_row(row) for row in rows.mappings()]


async def get_job(connection: AsyncConnection, job_id: str, caller: str | None) -> Job:
    """A job of this caller; of anybody with None. Raises `JobNotFound`."""
    where = [jobs.c.id == job_id]
    if caller is not None:
        where.append(jobs.c.caller == caller)
    for job in await find_jobs(connection, *where):
        return job
    raise JobNotFound()


async def update_job(
    connection: AsyncConnection, where: ColumnElement[bool], values: Mapping[str, Any]
) -> bool:
    """Change the job for which `where` holds; False if there is none."""
    answer = await connection.execute(update(jobs).where(where).values(**values))
    return answer.rowcount == 1


async def end_job(
    connection: AsyncConnection,
    job: Job,
    where: ColumnElement[bool],
    values: Mapping[str, Any],
    now: float,
) -> bool:
    """End a job in one transaction with the message to its receiver; False if `where` does not hold any more.

    Args:
        connection: In a transaction that writes.
        job: As it was read.
        where: What must hold of the row.
        values: Of its columns; they have its state.
        now: The current Unix time.
    """
    ended = {"ended": now, "lease_owner": None, "lease_until": None}
    if not await update_job(connection, where, {**ended, **values}):
        return False
    await connection.execute(delete(job_uploads).where(job_uploads.c.job_id == job.id))
    if job.webhook is not None:
        await put_message(connection, job.webhook, f"image_job.{values['state']}", job.id, now)
    return True
