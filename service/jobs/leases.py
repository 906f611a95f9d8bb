"""Jobs as gateways draw them: claimed for a time, renewed, given back, ended behind a fence, and swept.

A lease that is not renewed lets another gateway draw the job; each claim is a new attempt, and only the
latest one can end the job. So a job may be drawn twice, and ends once.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy import func as sql

from safelight.service.database.tables import job_uploads, jobs, webhook_messages
from safelight.service.errors import JobAbandoned
from safelight.service.jobs.job import OPEN_STATES, Job, JobError, JobResult, JobState
from safelight.service.jobs.job_table import (
    LEASE_SECONDS,
    LOCK,
    MAX_FAILURES,
    WITHOUT_KEY,
    JobDatabase,
    claimed,
    end_job,
    find_jobs,
    has_lost_lease,
    is_claimable,
    is_held,
    update_job,
)

DAY = 86_400.0


class JobLeases:
    """The leases of jobs. Every method raises `JobsUnavailable` if the database cannot be used.

    Args:
        database: Of the jobs.
        kept_seconds: How long an expired job is still listed.
    """

    def __init__(self, database: JobDatabase, kept_seconds: float):
        self._database = database
        self._kept_seconds = kept_seconds

    async def has_claimable(self) -> bool:
        """Whether a job can be claimed: cheaper than the attempt, which takes SQLite's only lock."""
        async with self._database.reading() as connection:
            is_next = is_claimable(self._database.clock(), MAX_FAILURES), jobs.c.batch.is_(None)
            return await connection.scalar(select(jobs.c.id).where(*is_next).limit(1)) is not None

    async def claim(self, owner: str) -> Job | None:
        """Take the next job for `LEASE_SECONDS`: a queued one, or one whose lease has ended; no batch's line.

        Of equal priority, the caller of whose jobs the fewest are drawn comes first, then the oldest job.
        """
        now = self._database.clock()
        running = jobs.alias("running")
        is_of_caller = and_(
            running.c.state == JobState.RUNNING, running.c.caller == jobs.c.caller, running.c.batch.is_(None)
        )
        num_running = select(sql.count(running.c.id)).where(is_of_caller).scalar_subquery()
        next_id = (
            select(jobs.c.id)
            .where(is_claimable(now, MAX_FAILURES), jobs.c.batch.is_(None))
            .order_by(jobs.c.priority.desc(), num_running, jobs.c.created, jobs.c.id)
            .limit(1)
            # PostgreSQL passes over rows that others are claiming; SQLite, which has one writer, ignores it
            .with_for_update(skip_locked=True, of=jobs)
        )
        query = (
            update(jobs)
            .where(jobs.c.id == next_id.scalar_subquery())
            .values(**claimed(owner, now))
            .returning(*jobs.c)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(query)).mappings().first()
            return None if row is None else Job.from_row(row)

    async def renew(self, job: Job, steps_done: int) -> bool:
        """Hold the lease for longer; False if it is lost."""
        until = self._database.clock() + LEASE_SECONDS
        return await self._update(job, {"lease_until": until, "steps_done": steps_done})

    async def release(self, job: Job, delay: float = 0.0, has_failed: bool = False) -> bool:
        """Give a job back, to be drawn again after `delay` seconds; False if the lease is lost."""
        values = {
            "state": JobState.QUEUED,
            "due": self._database.clock() + delay,
            "failures": job.failures + int(has_failed),
            "lease_owner": None,
            "lease_until": None,
            "steps_done": 0,
        }
        return await self._update(job, values)

    async def end(self, job: Job, outcome: JobResult | JobError) -> bool:
        """End a job, with the message to its receiver; False if the lease is lost."""
        if isinstance(outcome, JobResult):
            values: dict[str, Any] = {
                "state": JobState.DONE, "result": outcome.to_json(), "steps_done": job.steps,
            }  # fmt: skip
        else:  # the key is free again: no failure is pinned to it
            values = {"state": JobState.FAILED, "error": outcome.to_json(), **WITHOUT_KEY}
        async with self._database.writing() as connection:
            return await end_job(connection, job, is_held(job), values, self._database.clock())

    async def upload(self, job: Job) -> tuple[bytes, bytes | None] | None:
        """The image and the mask of an edit, until it has ended."""
        async with self._database.reading() as connection:
            query = select(job_uploads.c.image, job_uploads.c.mask).where(job_uploads.c.job_id == job.id)
            row = (await connection.execute(query)).first()
            return None if row is None else (row.image, row.mask)

    async def attempts(self, job_ids: Collection[str]) -> dict[str, int]:
        """The attempts of those of these jobs that are running."""
        async with self._database.reading() as connection:
            is_running = jobs.c.state == JobState.RUNNING
            query = select(jobs.c.id, jobs.c.attempt).where(jobs.c.id.in_(job_ids), is_running)
            return {row.id: row.attempt for row in await connection.execute(query)}

    async def sweep(self) -> None:
        """Expire and delete jobs whose time is over, end those that are given up, and free old keys.

        The image store deletes their images, whose names say the same time.
        """
        now = self._database.clock()
        expired = {"state": JobState.EXPIRED, "result": None, **WITHOUT_KEY}
        error = JobError.of(JobAbandoned()).to_json()
        abandoned = {"state": JobState.FAILED, "error": error, **WITHOUT_KEY}
        is_old = jobs.c.expires <= now
        is_over = and_(is_old, or_(jobs.c.state == JobState.QUEUED, has_lost_lease(now)))
        is_given_up = and_(jobs.c.expires > now, jobs.c.failures >= MAX_FAILURES, has_lost_lease(now))
        async with self._database.writing(LOCK) as connection:
            for where, values in ((is_over, expired), (is_given_up, abandoned)):
                for job in await find_jobs(connection, where):
                    await end_job(connection, job, and_(jobs.c.id == job.id, where), values, now)
            # a job that was done ended before, and its receiver knows that
            is_done = and_(is_old, jobs.c.state == JobState.DONE)
            await connection.execute(update(jobs).where(is_done).values(**expired))
            is_forgotten = jobs.c.expires <= now - self._kept_seconds
            await connection.execute(delete(jobs).where(is_forgotten, jobs.c.state.not_in(OPEN_STATES)))
            keys = jobs.c.idempotency_until <= now
            await connection.execute(update(jobs).where(keys).values(**WITHOUT_KEY))
            is_told = webhook_messages.c.ended <= now - self._kept_seconds
            # of a service that sends none any more; all attempts take less than a day
            is_stale = webhook_messages.c.created <= now - self._kept_seconds - DAY
            await connection.execute(delete(webhook_messages).where(or_(is_told, is_stale)))

    async def _update(self, job: Job, values: Mapping[str, Any]) -> bool:
        async with self._database.writing() as connection:
            return await update_job(connection, is_held(job), values)
