"""Leases: claims, the fence, what is given back, and what is swept, on SQLite and PostgreSQL."""

import asyncio

import pytest

from safelight.service.errors import JobNotFound, StageLost
from safelight.service.jobs.job import Job, JobError, JobState
from safelight.service.jobs.job_table import LEASE_SECONDS, MAX_FAILURES
from tests.service.jobs.opened import START, Jobs
from tests.service.jobs.submissions import RESULT, make_edit, make_submission

ERROR = JobError.of(StageLost())


async def submit(jobs: Jobs, caller: str = "alice", **changes: object) -> Job:
    job, _ = await jobs.store.submit(make_submission(caller, **changes), "gateway")
    return job


async def claim(jobs: Jobs, owner: str = "gateway") -> Job:
    job = await jobs.leases.claim(owner)
    assert job is not None
    return job


async def state_of(jobs: Jobs, job: Job) -> JobState:
    return (await jobs.store.get(job.id, None)).state


async def test_a_claim_takes_the_oldest_job_for_a_time(jobs: Jobs) -> None:
    assert not await jobs.leases.has_claimable()
    first = await submit(jobs)
    jobs.clock.advance(1)
    await submit(jobs)
    assert await jobs.leases.has_claimable()
    job = await claim(jobs)
    assert (job.id, job.state, job.attempt, job.failures) == (first.id, JobState.RUNNING, 1, 0)
    assert (job.lease_owner, job.lease_until, job.started) == ("gateway", START + 16, START + 1)


async def test_no_two_gateways_claim_the_same_job(jobs: Jobs) -> None:
    submitted = [await submit(jobs, f"caller {index}") for index in range(6)]
    claims = await asyncio.gather(*(jobs.leases.claim(f"gateway {index}") for index in range(9)))
    claimed = [job.id for job in claims if job is not None]
    assert len(claimed) == len(set(claimed)) <= 6
    while (job := await jobs.leases.claim("gateway")) is not None:  # one that others were looking at
        claimed.append(job.id)
    assert sorted(claimed) == sorted(job.id for job in submitted)


async def test_callers_take_turns(jobs: Jobs) -> None:
    for caller in ("alice", "alice", "alice", "bob", "carol"):
        await submit(jobs, caller)
        jobs.clock.advance(1)
    assert [(await claim(jobs)).caller for _ in range(5)] == ["alice", "bob", "carol", "alice", "alice"]


async def test_a_lease_that_is_renewed_holds(jobs: Jobs) -> None:
    await submit(jobs)
    job = await claim(jobs)
    for steps in (1, 2, 3):
        jobs.clock.advance(LEASE_SECONDS - 1)
        assert await jobs.leases.renew(job, steps)
        assert await jobs.leases.claim("other") is None
    assert (await jobs.store.get(job.id, None)).steps_done == 3
    assert await jobs.leases.attempts([job.id, "job_none"]) == {job.id: 1}


async def test_who_finds_a_lease_that_has_ended_takes_the_job(jobs: Jobs) -> None:
    await submit(jobs)
    first = await claim(jobs, "first")
    jobs.clock.advance(LEASE_SECONDS)
    assert await jobs.leases.has_claimable()
    second = await claim(jobs, "second")
    assert (second.id, second.attempt, second.failures, second.started) == (first.id, 2, 1, first.started)
    # the first was only asleep
    assert not await jobs.leases.renew(first, 1)
    assert not await jobs.leases.release(first)
    assert not await jobs.leases.end(first, ERROR)
    assert await jobs.leases.attempts([first.id]) == {first.id: 2}
    assert await jobs.leases.end(second, RESULT)
    assert not await jobs.leases.end(second, RESULT)
    job = await jobs.store.get(first.id, None)
    assert (job.state, job.result, job.error, job.lease_owner) == (JobState.DONE, RESULT, None, None)


async def test_a_lease_that_ended_and_that_nobody_took_still_ends_the_job(jobs: Jobs) -> None:
    await submit(jobs)
    job = await claim(jobs)
    jobs.clock.advance(10 * LEASE_SECONDS)
    assert await jobs.leases.end(job, RESULT)


async def test_a_job_that_was_given_back_waits(jobs: Jobs) -> None:
    await submit(jobs)
    assert await jobs.leases.release(await claim(jobs), 30.0, has_failed=True)
    assert await jobs.leases.claim("gateway") is None
    jobs.clock.advance(30)
    job = await claim(jobs)
    assert (job.attempt, job.failures) == (2, 1)
    assert await jobs.leases.release(job)
    assert (await claim(jobs)).failures == 1


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_failure_frees_the_key(jobs: Jobs, key: str | None) -> None:
    await submit(jobs, idempotency_key=key)
    assert await jobs.leases.end(await claim(jobs), ERROR)
    job = await submit(jobs, idempotency_key=key, digest="1" * 64)
    assert job.state is JobState.QUEUED


async def test_a_failed_job_says_why(jobs: Jobs) -> None:
    await submit(jobs)
    job = await claim(jobs)
    await jobs.leases.end(job, ERROR)
    error = (await jobs.store.get(job.id, None)).error
    assert error == ERROR
    raised = error.as_service_error()
    assert (raised.status, raised.body(), raised.headers) == (503, StageLost().body(), StageLost().headers)


async def test_a_job_that_gateways_are_lost_with_is_given_up(jobs: Jobs) -> None:
    submitted = await submit(jobs)
    for failures in range(MAX_FAILURES + 1):
        assert (await claim(jobs)).failures == failures
        await jobs.leases.sweep()
        jobs.clock.advance(LEASE_SECONDS)
    assert await jobs.leases.claim("gateway") is None
    assert await state_of(jobs, submitted) is JobState.RUNNING
    await jobs.leases.sweep()
    job = await jobs.store.get(submitted.id, None)
    assert job.state is JobState.FAILED
    assert job.error is not None and job.error.code == "job_abandoned"


async def test_jobs_expire_and_are_forgotten(jobs: Jobs) -> None:
    for caller in ("alice", "bob", "carol"):
        await submit(jobs, caller)
    waiting, done, running = [await claim(jobs) for _ in range(3)]
    await jobs.store.submit(make_edit(caller="dora"), "gateway")
    await jobs.leases.release(waiting, 10_000.0)
    assert await jobs.leases.end(done, RESULT)
    jobs.clock.advance(999.5)
    assert await jobs.leases.renew(running, 0)
    await jobs.leases.sweep()
    assert await state_of(jobs, waiting) is JobState.QUEUED
    assert await state_of(jobs, done) is JobState.DONE
    jobs.clock.advance(0.5)
    await jobs.leases.sweep()
    assert await state_of(jobs, waiting) is JobState.EXPIRED
    expired = await jobs.store.get(done.id, None)
    assert (expired.state, expired.result, expired.ended) == (JobState.EXPIRED, None, START)
    assert await state_of(jobs, running) is JobState.RUNNING  # somebody draws it
    assert await jobs.leases.claim("gateway") is None
    jobs.clock.advance(LEASE_SECONDS)
    await jobs.leases.sweep()
    assert await state_of(jobs, running) is JobState.EXPIRED
    jobs.clock.advance(1000)
    await jobs.leases.sweep()
    for job in (waiting, done, running):
        with pytest.raises(JobNotFound):
            await jobs.store.get(job.id, None)


async def test_the_sweep_frees_keys_after_a_day(jobs: Jobs) -> None:
    job = await submit(jobs, idempotency_key="k")
    await jobs.leases.sweep()
    assert (await jobs.store.get(job.id, None)).idempotency_key == "k"
    jobs.clock.advance(1000)
    await jobs.leases.sweep()
    assert (await jobs.store.get(job.id, None)).idempotency_key is None  # it has expired
