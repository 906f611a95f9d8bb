"""A clock that is set while jobs are drawn: each job still ends once, and none waits for the old time."""

from safelight.service.jobs.job import JobState
from safelight.service.jobs.job_table import LEASE_SECONDS
from tests.service.jobs.opened import Jobs
from tests.service.jobs.submissions import RESULT, make_submission

HOUR = 3600.0


async def test_a_clock_set_forward_lets_another_draw_and_the_first_end_nothing(jobs: Jobs) -> None:
    submitted, _ = await jobs.store.submit(make_submission("alice"), "gateway")
    first = await jobs.leases.claim("gateway")
    jobs.clock.advance(10 * LEASE_SECONDS)
    second = await jobs.leases.claim("other")
    assert first is not None and second is not None and second.id == first.id == submitted.id
    assert not await jobs.leases.renew(first, 1)
    assert not await jobs.leases.end(first, RESULT)
    assert await jobs.leases.end(second, RESULT)
    assert (await jobs.store.get(submitted.id, None)).state is JobState.DONE


async def test_a_clock_set_back_does_not_keep_the_job_of_a_dead_gateway(jobs: Jobs) -> None:
    await jobs.store.submit(make_submission("alice"), "gateway")
    dead = await jobs.leases.claim("gateway")
    jobs.clock.advance(-HOUR)
    taken = await jobs.leases.claim("other")
    assert dead is not None and taken is not None and taken.id == dead.id
    assert not await jobs.leases.end(dead, RESULT)
    assert await jobs.leases.claim("third") is None  # the new lease holds by the new time
    jobs.clock.advance(LEASE_SECONDS)
    assert await jobs.leases.claim("third") is not None
