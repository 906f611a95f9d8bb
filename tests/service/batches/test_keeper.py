"""A gateway that moves batches on, and what another one does after its death."""

import json
from dataclasses import dataclass, field

import pytest

from safelight.service.batches.batch import Batch, BatchRequest, BatchStatus
from safelight.service.batches.batch_store import BatchStore
from safelight.service.batches.file_store import FileStore
from safelight.service.batches.input_lines import InputLine
from safelight.service.batches.keeper import CHUNK, BatchKeeper
from safelight.service.errors import StoreFailed
from safelight.service.jobs.batch_lines import BatchLines
from safelight.service.jobs.job import Job, JobState, Line
from safelight.service.jobs.job_table import LEASE_SECONDS
from tests.service.jobs.opened import Jobs
from tests.service.jobs.submissions import RESULT, make_submission

ENDPOINT = "/v1/images/generations"


@dataclass
class Gateway:
    """What one gateway has of batches; it dies at the line `last_line`."""

    jobs: Jobs
    owner: str
    last_line: int = 10_000
    stopped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = BatchStore(self.jobs.table, max_open=10)
        self.files = FileStore(self.jobs.table, max_bytes=1 << 20)
        self.lines = BatchLines(self.jobs.table)
        self.keeper = BatchKeeper(
            self.batches, self.files, self.lines, self._read, self._write, self.owner, 1000, self._stop
        )

    async def _read(self, batch: Batch, line: InputLine) -> Line:
        if line.number > self.last_line:
            raise KeyboardInterrupt
        return Line(line.number, line.custom_id, make_submission(request_id=f"{self.owner} {line.number}"))

    async def _write(self, batch: Batch, job: Job) -> bytes:
        if self.last_line == 0:
            raise StoreFailed()
        return f"{job.custom_id}\n".encode()

    async def _stop(self, batch_id: str) -> None:
        self.stopped.append(batch_id)

    async def submit(self, num_lines: int) -> str:
        entries = [
            {"custom_id": str(n), "method": "POST", "url": ENDPOINT, "body": {}} for n in range(num_lines)
        ]
        content = "\n".join(map(json.dumps, entries)).encode()
        file = await self.files.add("alice", "in.jsonl", content, 1e6)
        request = BatchRequest("alice", "Alice", ENDPOINT, file.id, None, "", None, 1e6)
        return (await self.batches.submit(request)).id

    async def draw_all(self) -> None:
        while claimed := await self.lines.claim("gateway", 1000):
            for job in claimed:
                await self.jobs.leases.end(job, RESULT)


async def test_lines_are_read_once_also_after_a_death(jobs: Jobs) -> None:
    lost, other = Gateway(jobs, "lost", last_line=CHUNK + 10), Gateway(jobs, "other")
    batch_id = await lost.submit(2 * CHUNK)
    with pytest.raises(KeyboardInterrupt):
        await lost.keeper.advance()
    assert not await other.keeper.advance()
    jobs.clock.advance(LEASE_SECONDS)
    assert await other.keeper.advance()
    counts = await other.lines.counts([batch_id])
    assert counts == {batch_id: {JobState.QUEUED: 2 * CHUNK}}
    claimed = await other.lines.claim("gateway", 1000)
    readers = [job.request_id.split()[0] for job in claimed]
    assert readers == ["lost"] * CHUNK + ["other"] * CHUNK


async def test_a_gateway_that_stops_leaves_the_rest(jobs: Jobs) -> None:
    stopping, other = Gateway(jobs, "stopping"), Gateway(jobs, "other")
    batch_id = await stopping.submit(3 * CHUNK)
    read = stopping.keeper._read_line

    async def read_and_stop(batch: Batch, line: InputLine) -> Line:
        stopping.keeper.stop()
        return await read(batch, line)

    stopping.keeper._read_line = read_and_stop
    await stopping.keeper.advance()
    assert await other.lines.counts([batch_id]) == {batch_id: {JobState.QUEUED: CHUNK}}
    assert not await stopping.keeper.advance()
    jobs.clock.advance(LEASE_SECONDS)
    await other.keeper.advance()
    assert await other.lines.counts([batch_id]) == {batch_id: {JobState.QUEUED: 3 * CHUNK}}


async def test_the_output_is_made_again_when_the_store_is_back(jobs: Jobs) -> None:
    gateway = Gateway(jobs, "gateway")
    batch_id = await gateway.submit(3)
    await gateway.keeper.advance()
    await gateway.draw_all()
    with pytest.raises(StoreFailed):
        await Gateway(jobs, "without store", last_line=0).keeper.advance()
    assert (await gateway.batches.get(batch_id, "alice")).status is BatchStatus.FINALIZING
    jobs.clock.advance(LEASE_SECONDS)
    assert await gateway.keeper.advance()
    done = await gateway.batches.get(batch_id, "alice")
    assert done.status is BatchStatus.COMPLETED and done.output_file is not None
    assert (await gateway.files.get(done.output_file, "alice")).num_bytes == len("0\n1\n2\n")
    assert batch_id in gateway.stopped
    assert not await gateway.keeper.advance()


async def test_an_input_that_is_gone_fails_the_batch(jobs: Jobs) -> None:
    gateway = Gateway(jobs, "gateway")
    batch_id = await gateway.submit(1)
    batch = await gateway.batches.get(batch_id, "alice")
    await gateway.files.delete(batch.input_file, "alice")
    await gateway.keeper.advance()
    failed = await gateway.batches.get(batch_id, "alice")
    assert failed.status is BatchStatus.FAILED
    assert [fault.code for fault in failed.errors] == ["file_not_found"]


async def test_all_is_forgotten_in_time(jobs: Jobs) -> None:
    gateway = Gateway(jobs, "gateway")
    batch_id = await gateway.submit(1)
    await gateway.keeper.advance()
    await gateway.draw_all()
    await gateway.keeper.advance()
    jobs.clock.advance(86_400.0 + 1e6)
    await gateway.keeper.sweep()
    jobs.clock.advance(1e6)
    await jobs.leases.sweep()
    assert await gateway.batches.list_page("alice", 10, None) == ([], False)
    assert await gateway.files.list_page("alice", 10, None, None, False) == ([], False)
    assert await gateway.lines.counts([batch_id]) == {batch_id: {}}
