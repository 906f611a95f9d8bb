"""Jobs as their callers see them: submitted, shown, listed and cancelled."""

from collections.abc import Collection
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy import func as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.tables import job_uploads, jobs
from safelight.service.errors import KeyReused, TooManyJobs
from safelight.service.jobs.job import (
    INTERACTIVE_PRIORITY,
    JOB_PRIORITY,
    OPEN_STATES,
    Job,
    JobState,
    Submission,
)
from safelight.service.jobs.job_table import (
    LEASE_SECONDS,
    LOCK,
    WITHOUT_KEY,
    JobDatabase,
    end_job,
    find_jobs,
    get_job,
)
from safelight.service.messages import Upload

IDEMPOTENCY_SECONDS = 86_400.0
UPLOAD_SECONDS = 30.0  # of a use of the database with files


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How many jobs may be open, and how long each is kept."""

    max_jobs: int = 10_000
    max_jobs_per_key: int = 1_000
    max_upload_bytes: int = 1 << 30  # of all open jobs
    seconds: float = 172_800.0


class JobStore:
    """The jobs in a database. Every method raises `JobsUnavailable` if that cannot be used."""

    def __init__(self, database: JobDatabase, limits: JobLimits):
        self._database = database
        self._limits = limits

    async def submit(self, submission: Submission, owner: str) -> tuple[Job, bool]:
        """Keep a job, and say whether it is new: the caller's idempotency key may stand for one already.

        A job whose caller waits for the images is claimed by the gateway `owner` at once.

        Raises:
            KeyReused: The idempotency key stands for another request.
            TooManyJobs: Too many jobs are open.
        """
        now = self._database.clock()
        async with self._database.writing(LOCK, UPLOAD_SECONDS) as connection:
            if (job := await _find_key(connection, submission, now)) is not None:
                return job, False
            if not submission.is_interactive:
                await self._check_limits(connection, submission)
            values = job_values(submission, now, now + self._limits.seconds)
            if submission.is_interactive:
                values |= _claimed_at_once(owner, now)
            await connection.execute(insert(jobs).values(values))
            if submission.upload is not None:
                await keep_upload(connection, values["id"], submission.upload)
            return await get_job(connection, values["id"], None), True

    async def find_submitted(self, submission: Submission) -> Job | None:
        """The job that the idempotency key of a submission stands for. Raises `KeyReused`."""
        if submission.idempotency_key is None:
            return None
        async with self._database.writing(LOCK) as connection:
            return await _find_key(connection, submission, self._database.clock())

    async def get(self, job_id: str, caller: str | None) -> Job:
        """A job of this caller; of anybody with None. Raises `JobNotFound`."""
        async with self._database.reading() as connection:
            return await get_job(connection, job_id, caller)

    async def list_page(
        self, caller: str, limit: int, after: str | None = None, states: Collection[str] = ()
    ) -> tuple[list[Job], bool]:
        """Jobs of a caller that are no lines of batches, the newest first, and whether there are more.

        Args:
            caller: Whose.
            limit: How many at most.
            after: The job before them.
            states: Only jobs in one of these; all if empty.

        Raises:
            JobNotFound: There is no job `after`.
        """
        where = [jobs.c.caller == caller, jobs.c.batch.is_(None)]
        if states:
            where.append(jobs.c.state.in_(states))
        async with self._database.reading() as connection:
            if after is not None:
                last = await get_job(connection, after, caller)
                is_same_time = and_(jobs.c.created == last.created, jobs.c.id < last.id)
                where.append(or_(jobs.c.created < last.created, is_same_time))
            order = jobs.c.created.desc(), jobs.c.id.desc()
            query = select(jobs).where(*where).order_by(*order).limit(limit + 1)
            rows = (await connection.execute(query)).mappings().all()
        return [Job.from_row(row) for row in rows[:limit]], len(rows) > limit

    async def position(self, job: Job) -> int:
        """How many queued jobs are older, or of higher priority."""
        is_equal = jobs.c.priority == job.priority
        is_before = or_(
            jobs.c.priority > job.priority,
            and_(is_equal, jobs.c.created < job.created),
            and_(is_equal, jobs.c.created == job.created, jobs.c.id < job.id),
        )
        async with self._database.reading() as connection:
            query = select(sql.count()).select_from(jobs).where(jobs.c.state == JobState.QUEUED, is_before)
            return int(await connection.scalar(query) or 0)

    async def cancel(self, job_id: str, caller: str) -> Job:
        """Cancel an open job; one that has ended stays as it is. Raises `JobNotFound`."""
        values = {"state": JobState.CANCELLED, **WITHOUT_KEY}
        async with self._database.writing() as connection:
            job = await get_job(connection, job_id, caller)
            is_open = and_(jobs.c.id == job.id, jobs.c.state.in_(OPEN_STATES))
            await end_job(connection, job, is_open, values, self._database.clock())
            return await get_job(connection, job_id, caller)

    async def _check_limits(self, connection: AsyncConnection, submission: Submission) -> None:
        """Raise `TooManyJobs` if there is no room for another job."""
        is_open = jobs.c.state.in_(OPEN_STATES), jobs.c.batch.is_(None)
        query = select(sql.count()).select_from(jobs).where(*is_open)
        if int(await connection.scalar(query) or 0) >= self._limits.max_jobs:
            raise TooManyJobs("Too many jobs are open; please try again later.")
        of_caller = query.where(jobs.c.caller == submission.caller)
        if int(await connection.scalar(of_caller) or 0) >= self._limits.max_jobs_per_key:
            raise TooManyJobs(
                f"Too many of your jobs are open: at most {self._limits.max_jobs_per_key} may be."
            )
        if submission.upload is not None:
            query = select(sql.sum(job_uploads.c.num_bytes))
            num_bytes = int(await connection.scalar(query) or 0) + _num_bytes(submission.upload)
            if num_bytes > self._limits.max_upload_bytes:
                raise TooManyJobs("The files of open jobs take too much room; please try again later.")


def job_values(submission: Submission, now: float, expires: float) -> dict[str, Any]:
    """The columns of a new job that waits."""
    work, key = submission.work, submission.idempotency_key
    names = ("caller", "caller_name", "user", "request_id", "kind", "model", "digest", "webhook")
    return {name: getattr(submission, name) for name in names} | {
        "id": f"job_{token_hex(12)}",
        "state": JobState.QUEUED,
        "priority": JOB_PRIORITY,
        "work": work.to_json(),
        "num_images": len(work.params),
        "steps": work.steps,
        "steps_done": 0,
        "idempotency_key": key,
        "idempotency_until": None if key is None else now + IDEMPOTENCY_SECONDS,
        "created": now,
        "due": now,
        "expires": expires,
        "attempt": 0,
        "failures": 0,
    }


def _claimed_at_once(owner: str, now: float) -> dict[str, Any]:
    """The columns of a job whose caller waits, which the gateway `owner` draws."""
    return {
        "state": JobState.RUNNING,
        "priority": INTERACTIVE_PRIORITY,
        "started": now,
        "attempt": 1,
        "lease_owner": owner,
        "lease_until": now + LEASE_SECONDS,
    }


async def _find_key(connection: AsyncConnection, submission: Submission, now: float) -> Job | None:
    """The job that the caller's idempotency key stands for. Raises `KeyReused`."""
    if submission.idempotency_key is None:
        return None
    is_key = and_(jobs.c.caller == submission.caller, jobs.c.idempotency_key == submission.idempotency_key)
    for job in await find_jobs(connection, is_key):
        if job.idempotency_until is None or job.idempotency_until > now:
            if job.digest != submission.digest:
                raise KeyReused()
            return job
        await connection.execute(update(jobs).where(is_key).values(**WITHOUT_KEY))
    return None


async def keep_upload(connection: AsyncConnection, job_id: str, upload: Upload) -> None:
    """Keep the files of an edit, until its job has ended."""
    row = {"job_id": job_id, "image": upload.image, "mask": upload.mask, "num_bytes": _num_bytes(upload)}
    await connection.execute(insert(job_uploads).values(row))


def _num_bytes(upload: Upload) -> int:
    return len(upload.image) + len(upload.mask or b"")
