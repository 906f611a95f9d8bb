"""The lines of batches on both databases: kept once, claimed in turns, ended behind the fence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from safelight.service.batches.batch import Batch, BatchRequest, BatchStatus
from safelight.service.batches.batch_store import BatchStore
from safelight.service.errors import InvalidRequest, TooManyBatches
from safelight.service.jobs.batch_lines import PAGE, BatchLines
from safelight.service.jobs.job import BATCH_PRIORITY, Job, JobError, JobState, Line
from safelight.service.jobs.job_table import LEASE_SECONDS
from tests.service.jobs.opened import Jobs
from tests.service.jobs.submissions import RESULT, make_edit, make_submission

WEEK = 604_800.0


@dataclass
class Lines:
    """The batches of one database."""

    jobs: Jobs
    batches: BatchStore
    lines: BatchLines

    async def submit(self, caller: str = "alice", **changes: Any) -> Batch:
        request = BatchRequest(caller, caller, "/v1/images/generations", "file-1", None, "", None, WEEK)
        return await self.batches.submit(replace(request, **changes))

    async def begin(self, lines: Sequence[Line], caller: str = "alice") -> Batch:
        """A batch whose lines are drawn."""
        await self.submit(caller)
        batch = await self.batches.claim("gateway")
        assert batch is not None and await self.batches.add_lines(batch, lines)
        assert await self.batches.begin(batch, await self.lines.max_images(batch.id))
        return await self.batches.get(batch.id, caller)

    async def claim(self, room: int = 100) -> list[Job]:
        assert await self.lines.has_claimable()
        return await self.lines.claim("gateway", room)

    async def all_of(self, batch: Batch, is_output: bool) -> list[int | None]:
        return [job.line async for job in self.lines.of(batch.id, is_output)]


@pytest.fixture
def lines(jobs: Jobs) -> Lines:
    return Lines(jobs, BatchStore(jobs.table, max_open=3), BatchLines(jobs.table))


def make_lines(count: int, caller: str = "alice", first: int = 1) -> list[Line]:
    return [Line(n, f"line {n}", make_submission(caller)) for n in range(first, first + count)]


async def test_lines_are_claimed_in_order_and_within_the_room(lines: Lines) -> None:
    batch = await lines.begin(make_lines(5))
    assert (batch.status, batch.max_images) == (BatchStatus.IN_PROGRESS, 2)
    claimed = await lines.claim(room=5)
    assert [job.line for job in claimed] == [1, 2], "each has two images"
    assert {(job.batch, job.state, job.attempt, job.priority) for job in claimed} == {
        (batch.id, JobState.RUNNING, 1, BATCH_PRIORITY)
    }
    assert [job.line for job in await lines.claim(room=1)] == [3], "at least one"
    assert await lines.lines.counts([batch.id]) == {batch.id: {JobState.RUNNING: 3, JobState.QUEUED: 2}}
    assert await lines.lines.open_counts() == {"queued": 2, "running": 3}


async def test_callers_take_turns(lines: Lines) -> None:
    await lines.begin(make_lines(10))
    await lines.begin(make_lines(10, "bob"), "bob")
    claimed = [job.caller for _ in range(6) for job in await lines.claim(room=2)]
    assert sorted(claimed[::2]) == ["alice"] * 3 and sorted(claimed[1::2]) == ["bob"] * 3


async def test_lines_are_none_of_the_jobs(lines: Lines) -> None:
    await lines.begin(make_lines(2))
    assert not await lines.jobs.leases.has_claimable()
    assert await lines.jobs.leases.claim("gateway") is None
    assert await lines.jobs.store.list_page("alice", 10) == ([], False)
    for _ in range(12):  # as many as there may be
        await lines.jobs.store.submit(make_submission(), "gateway")


async def test_a_line_whose_gateway_died_is_claimed_again(lines: Lines) -> None:
    await lines.begin(make_lines(1))
    [lost] = await lines.claim()
    assert not await lines.lines.has_claimable()
    lines.jobs.clock.advance(LEASE_SECONDS)
    [job] = await lines.claim()
    assert (job.id, job.attempt, job.failures) == (lost.id, 2, 1)
    assert not await lines.jobs.leases.end(lost, RESULT)
    assert await lines.jobs.leases.end(job, RESULT)


async def test_a_batch_is_finished_when_its_lines_have_ended(lines: Lines) -> None:
    error = JobError.of(InvalidRequest("n must be 1.", "n"))
    faulty = [replace(line, error=error) for line in make_lines(1, first=PAGE + 2)]
    batch = await lines.begin([*make_lines(PAGE + 1), *faulty])
    assert await lines.batches.close_finished() == []
    for job in await lines.claim():
        await lines.jobs.leases.end(job, RESULT)
    assert await lines.batches.close_finished() == [batch.id]
    claimed = await lines.batches.claim("gateway")
    assert claimed is not None and claimed.status is BatchStatus.FINALIZING
    assert await lines.all_of(batch, True) == list(range(1, PAGE + 2))
    assert await lines.all_of(batch, False) == [PAGE + 2]
    assert await lines.batches.claim("other") is None
    assert await lines.batches.finish(claimed, 100, 10)
    assert not await lines.batches.finish(claimed, 100, 10)
    done = await lines.batches.get(batch.id, "alice")
    assert (done.status, done.ended) == (BatchStatus.COMPLETED, lines.jobs.clock.time())
    assert done.output_file and done.error_file and done.lease_owner is None
    assert not await lines.batches.has_work()


async def test_a_gateway_that_dies_while_it_reads_is_followed(lines: Lines) -> None:
    await lines.submit()
    lost = await lines.batches.claim("lost")
    assert lost is not None and await lines.batches.add_lines(lost, make_lines(3))
    assert await lines.batches.claim("other") is None
    lines.jobs.clock.advance(LEASE_SECONDS)
    batch = await lines.batches.claim("other")
    assert batch is not None and await lines.lines.last_number(batch.id) == 3
    assert not await lines.batches.add_lines(lost, make_lines(1, first=4))
    assert not await lines.batches.renew(lost)
    assert await lines.batches.add_lines(batch, make_lines(1, first=4))
    assert await lines.batches.begin(batch, 2)
    assert [job.line for job in await lines.claim()] == [1, 2, 3, 4]


async def test_cancelling_ends_all_open_lines(lines: Lines) -> None:
    upload = Line(3, "edit", make_edit())
    batch = await lines.begin([*make_lines(2), upload])
    [running] = await lines.claim(room=2)
    cancelled = await lines.batches.cancel(batch.id, "alice")
    assert (cancelled.status, cancelled.outcome) == (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
    assert await lines.lines.counts([batch.id]) == {batch.id: {JobState.CANCELLED: 3}}
    assert not await lines.jobs.leases.end(running, RESULT)
    assert not await lines.lines.has_claimable()
    claimed = await lines.batches.claim("gateway")
    assert claimed is not None and await lines.batches.finish(claimed, 0, 10)
    done = await lines.batches.get(batch.id, "alice")
    assert (done.status, done.output_file) == (BatchStatus.CANCELLED, None)
    assert await lines.batches.cancel(batch.id, "alice") == done


async def test_what_is_being_read_can_be_cancelled(lines: Lines) -> None:
    await lines.submit()
    batch = await lines.batches.claim("gateway")
    assert batch is not None
    await lines.batches.cancel(batch.id, "alice")
    assert not await lines.batches.add_lines(batch, make_lines(1))
    assert not await lines.batches.begin(batch, 1)
    claimed = await lines.batches.claim("gateway")
    assert claimed is not None and await lines.batches.finish(claimed, 0, 0)


async def test_a_batch_expires_with_what_was_drawn(lines: Lines) -> None:
    batch = await lines.begin(make_lines(2))
    [job] = await lines.claim(room=2)
    await lines.jobs.leases.end(job, RESULT)
    lines.jobs.clock.advance(86_400.0)
    assert not await lines.lines.has_claimable()
    assert await lines.batches.close_finished() == [batch.id]
    expired = await lines.batches.get(batch.id, "alice")
    assert (expired.status, expired.outcome) == (BatchStatus.FINALIZING, BatchStatus.EXPIRED)
    assert await lines.lines.counts([batch.id]) == {batch.id: {JobState.DONE: 1, JobState.EXPIRED: 1}}


async def test_batches_are_bounded_and_forgotten(lines: Lines) -> None:
    for _ in range(3):
        await lines.submit()
    with pytest.raises(TooManyBatches, match="at most 3"):
        await lines.submit()
    await lines.submit("bob")
    lines.jobs.clock.advance(86_400.0 + WEEK)
    await lines.batches.sweep()
    assert await lines.batches.list_page("alice", 10, None) == ([], False)
