"""Jobs as their callers see them, on SQLite and PostgreSQL."""

import asyncio

import pytest

from safelight.service.errors import JobNotFound, JobsUnavailable, KeyReused, TooManyJobs
from safelight.service.jobs.job import JobState
from safelight.service.jobs.job_store import IDEMPOTENCY_SECONDS
from safelight.service.jobs.job_table import LEASE_SECONDS
from tests.service.jobs.opened import START, Jobs
from tests.service.jobs.submissions import RESULT, WORK, make_edit, make_submission


async def submit(jobs: Jobs, caller: str = "alice", **changes: object) -> str:
    job, is_new = await jobs.store.submit(make_submission(caller, **changes), "gateway")
    assert is_new
    return job.id


async def test_a_job_is_what_was_submitted(jobs: Jobs) -> None:
    job, _ = await jobs.store.submit(make_submission(user="u", webhook="https://hooks.test/"), "gateway")
    assert await jobs.store.get(job.id, "alice") == job
    assert (job.caller, job.caller_name, job.user, job.request_id) == ("alice", "Alice", "u", "request")
    assert (job.state, job.work, job.num_images, job.steps) == (JobState.QUEUED, WORK, 2, 8)
    assert (job.created, job.expires, job.attempt, job.webhook) == (
        START, START + 1000, 0, "https://hooks.test/",
    )  # fmt: skip
    assert (job.lease_owner, job.started, job.ended, job.result, job.error) == (None,) * 5


async def test_an_edit_keeps_its_parameters_and_files_until_it_has_ended(jobs: Jobs) -> None:
    edit = make_edit()
    assert edit.upload is not None
    await jobs.store.submit(edit, "gateway")
    job = await jobs.leases.claim("gateway")
    assert job is not None and job.work == edit.work
    assert await jobs.leases.upload(job) == (edit.upload.image, edit.upload.mask)
    assert await jobs.leases.end(job, RESULT)
    assert await jobs.leases.upload(job) is None


async def test_a_caller_sees_its_own_jobs_only(jobs: Jobs) -> None:
    job_id = await submit(jobs)
    with pytest.raises(JobNotFound):
        await jobs.store.get(job_id, "bob")
    with pytest.raises(JobNotFound):
        await jobs.store.cancel(job_id, "bob")
    assert (await jobs.store.get(job_id, None)).state is JobState.QUEUED
    assert await jobs.store.list_page("bob", 10) == ([], False)
    with pytest.raises(JobNotFound):  # not even as the place in a list
        await jobs.store.list_page("bob", 10, after=job_id)


async def test_pages_list_every_job_once_the_newest_first(jobs: Jobs) -> None:
    job_ids = []
    for index in range(7):
        jobs.clock.advance(index % 2)  # some at the same time
        job_ids.append(await submit(jobs))
        await submit(jobs, "bob")
    listed: list[tuple[float, str]] = []
    after, has_more = None, True
    while has_more:
        page, has_more = await jobs.store.list_page("alice", 3, after)
        assert 0 < len(page) <= 3
        listed += [(job.created, job.id) for job in page]
        after = page[-1].id
    assert listed == sorted(listed, reverse=True)
    assert sorted(job_id for _, job_id in listed) == sorted(job_ids)


async def test_a_list_may_be_of_some_states(jobs: Jobs) -> None:
    first, second = await submit(jobs), await submit(jobs)
    await jobs.store.cancel(second, "alice")
    for states, job_id in (((JobState.QUEUED,), first), ((JobState.CANCELLED, JobState.DONE), second)):
        page, has_more = await jobs.store.list_page("alice", 1, states=states)
        assert ([job.id for job in page], has_more) == ([job_id], False)


async def test_the_position_is_the_number_of_older_jobs(jobs: Jobs) -> None:
    job_ids = []
    for _ in range(3):
        job_ids.append(await submit(jobs))
        jobs.clock.advance(1)
    positions = [await jobs.store.position(await jobs.store.get(job_id, None)) for job_id in job_ids]
    assert positions == [0, 1, 2]
    await jobs.leases.claim("gateway")
    assert await jobs.store.position(await jobs.store.get(job_ids[2], None)) == 1


async def test_a_cancelled_job_stays_so(jobs: Jobs) -> None:
    job_id = await submit(jobs)
    claimed = await jobs.leases.claim("gateway")
    assert claimed is not None
    job = await jobs.store.cancel(job_id, "alice")
    assert (job.state, job.ended, job.lease_owner) == (JobState.CANCELLED, START, None)
    assert not await jobs.leases.end(claimed, RESULT)
    assert not await jobs.leases.renew(claimed, 1)
    assert not await jobs.leases.release(claimed)
    jobs.clock.advance(5)
    assert await jobs.store.cancel(job_id, "alice") == job
    assert await jobs.leases.claim("gateway") is None


async def test_a_job_that_is_done_cannot_be_cancelled(jobs: Jobs) -> None:
    job_id = await submit(jobs)
    claimed = await jobs.leases.claim("gateway")
    assert claimed is not None and await jobs.leases.end(claimed, RESULT)
    job = await jobs.store.cancel(job_id, "alice")
    assert (job.state, job.result, job.steps_done) == (JobState.DONE, RESULT, 8)


async def test_a_caller_may_have_so_many_open_jobs(jobs: Jobs) -> None:
    job_ids = [await submit(jobs) for _ in range(12)]
    with pytest.raises(TooManyJobs, match="at most 12"):
        await submit(jobs)
    await submit(jobs, "bob")
    await jobs.store.cancel(job_ids[0], "alice")
    await submit(jobs)


async def test_all_callers_together_may_have_so_many_open_jobs(jobs: Jobs) -> None:
    for index in range(20):
        await submit(jobs, f"caller {index}")
    with pytest.raises(TooManyJobs, match="Too many jobs are open"):
        await submit(jobs)
    await submit(jobs, is_interactive=True)  # the dispatcher limits those


async def test_the_files_of_open_jobs_take_so_much_room(jobs: Jobs) -> None:
    job, _ = await jobs.store.submit(make_edit(60), "gateway")
    with pytest.raises(TooManyJobs, match="files"):
        await jobs.store.submit(make_edit(41), "gateway")
    await jobs.store.submit(make_edit(40), "gateway")
    await jobs.store.cancel(job.id, "alice")
    await jobs.store.submit(make_edit(60), "gateway")


async def test_a_key_stands_for_one_job_of_its_caller(jobs: Jobs) -> None:
    submission = make_submission(idempotency_key="k")
    assert await jobs.store.find_submitted(submission) is None
    answers = await asyncio.gather(*(jobs.store.submit(submission, "gateway") for _ in range(5)))
    assert len({job.id for job, _ in answers}) == 1
    assert sorted(is_new for _, is_new in answers) == [False] * 4 + [True]
    found = await jobs.store.find_submitted(submission)
    assert found is not None and found.id == answers[0][0].id
    bobs, is_new = await jobs.store.submit(make_submission("bob", idempotency_key="k"), "gateway")
    assert is_new and bobs.id != found.id


async def test_a_key_is_refused_for_another_request(jobs: Jobs) -> None:
    await submit(jobs, idempotency_key="k")
    other = make_submission(idempotency_key="k", digest="1" * 64)
    with pytest.raises(KeyReused):
        await jobs.store.submit(other, "gateway")
    with pytest.raises(KeyReused):
        await jobs.store.find_submitted(other)


async def test_a_key_is_free_after_a_day(jobs: Jobs) -> None:
    first = await submit(jobs, idempotency_key="k")
    jobs.clock.advance(IDEMPOTENCY_SECONDS - 1)
    job, is_new = await jobs.store.submit(make_submission(idempotency_key="k"), "gateway")
    assert (job.id, is_new) == (first, False)
    jobs.clock.advance(1)
    assert await submit(jobs, idempotency_key="k", digest="1" * 64) != first


async def test_a_waiting_callers_job_is_claimed_at_once(jobs: Jobs) -> None:
    job, _ = await jobs.store.submit(make_submission(is_interactive=True), "gateway")
    assert (job.state, job.attempt, job.lease_owner) == (JobState.RUNNING, 1, "gateway")
    assert (job.lease_until, job.is_interactive) == (START + LEASE_SECONDS, True)
    assert await jobs.leases.claim("other") is None
    jobs.clock.advance(LEASE_SECONDS)
    again = await jobs.leases.claim("other")
    assert again is not None and (again.id, again.is_interactive) == (job.id, False)


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
async def test_a_database_that_is_away_is_an_error_of_the_service(jobs: Jobs) -> None:
    location = jobs.table._database.location
    assert location.file is not None
    location.file.write_bytes(b"no database at all, but text of more than a few bytes" * 100)
    with pytest.raises(JobsUnavailable):
        await jobs.store.list_page("alice", 1)
    with pytest.raises(JobsUnavailable):
        await submit(jobs)
