"""What a gateway makes of its jobs: room, cancellations, lost leases, failures, and its own end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from safelight.service.errors import (
    BrokenImage,
    InvalidRequest,
    LimitReached,
    PoisonedRequest,
    QueueFull,
    ServiceError,
    ShuttingDown,
    StageLost,
)
from safelight.service.jobs import runner as runner_module
from safelight.service.jobs.batch_lines import BatchLines
from safelight.service.jobs.drawing import Drawing, End
from safelight.service.jobs.job import Job, JobState
from safelight.service.jobs.job_table import LEASE_SECONDS, MAX_FAILURES
from safelight.service.jobs.runner import JobRunner
from safelight.service.messages import Upload
from tests.service.jobs.opened import Jobs
from tests.service.jobs.submissions import RESULT, make_edit, make_submission

CALLER = ContextVar("CALLER", default="nobody")
pytestmark = pytest.mark.parametrize("location", ["sqlite"], indirect=True)


@dataclass
class Painter:
    """Draws jobs while its gate is open; raises `errors` first, one a job."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[Exception] = field(default_factory=list)
    last_gate: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # between the end of a job and that of its task
    begun: asyncio.Queue[Drawing] = field(default_factory=asyncio.Queue)
    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    callers: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def __call__(self, drawing: Drawing, end: End) -> None:
        self.begun.put_nowait(drawing)
        self.callers.append(CALLER.get())
        if self.errors:
            raise self.errors.pop(0)
        try:
            await self.gate.wait()
            await end(RESULT)
            self.ended.put_nowait(drawing.job.id)
            await self.last_gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(drawing.job.id)
            raise


@pytest.fixture
async def painter() -> Painter:
    painter = Painter()
    painter.last_gate.set()
    return painter


@pytest.fixture
async def runner(jobs: Jobs, painter: Painter) -> AsyncIterator[JobRunner]:
    lines = BatchLines(jobs.table)
    runner = JobRunner(jobs.leases, painter, "gateway", concurrency=2, lines=lines, max_line_images=4)
    yield runner
    await runner.stop(is_end=True)


async def submit(jobs: Jobs, **changes: Any) -> Job:
    job, _ = await jobs.store.submit(make_submission(**changes), "gateway")
    return job


async def draw_all(runner: JobRunner, painter: Painter) -> None:
    """Draw what can be claimed now, to its end."""
    painter.gate.set()
    await runner.fill()
    for drawing in list(runner._drawings.values()):
        assert drawing.task is not None
        await asyncio.wait({drawing.task})


async def test_a_gateway_draws_so_many_at_a_time(jobs: Jobs, runner: JobRunner, painter: Painter) -> None:
    submitted = [await submit(jobs) for _ in range(5)]
    await runner.fill()
    await runner.fill()
    drawn = [(await painter.begun.get()).job.id for _ in range(2)]
    assert painter.begun.empty()
    assert all(runner.find(job_id) is not None for job_id in drawn)
    for _ in range(3):
        await draw_all(runner, painter)
    states = [(await jobs.store.get(job.id, None)).state for job in submitted]
    assert states == [JobState.DONE] * 5


async def test_jobs_whose_callers_wait_take_no_room(jobs: Jobs, runner: JobRunner, painter: Painter) -> None:
    for _ in range(3):
        runner.start(await submit(jobs, is_interactive=True))
    for _ in range(3):
        await submit(jobs)
    await runner.fill()
    for _ in range(5):
        await painter.begun.get()
    assert painter.begun.empty()


async def test_an_edit_has_its_files(jobs: Jobs, runner: JobRunner, painter: Painter) -> None:
    edit = make_edit()
    await jobs.store.submit(edit, "gateway")
    await draw_all(runner, painter)
    assert (await painter.begun.get()).upload == edit.upload
    assert isinstance(edit.upload, Upload)


async def test_a_cancelled_job_is_drawn_no_further(jobs: Jobs, runner: JobRunner, painter: Painter) -> None:
    job = await submit(jobs)
    await runner.fill()
    await painter.begun.get()
    await jobs.store.cancel(job.id, "alice")
    await runner.cancel(job.id)
    assert (painter.cancelled, runner.find(job.id)) == ([job.id], None)
    assert (await jobs.store.get(job.id, None)).state is JobState.CANCELLED
    await runner.cancel(job.id)  # nothing is drawn


async def test_a_job_that_was_cancelled_elsewhere_is_drawn_no_further(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    first, second = await submit(jobs), await submit(jobs)
    await runner.fill()
    for _ in range(2):
        await painter.begun.get()
    await jobs.store.cancel(first.id, "alice")
    await runner.check()
    assert painter.cancelled == [first.id]
    assert runner.find(second.id) is not None


async def test_a_job_that_another_gateway_has_taken_is_drawn_no_further(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    job = await submit(jobs)
    await runner.fill()
    await painter.begun.get()
    jobs.clock.advance(LEASE_SECONDS)
    other = await jobs.leases.claim("other")
    assert other is not None
    await runner.check()
    assert painter.cancelled == [job.id]
    assert await jobs.leases.end(other, RESULT)


async def test_leases_are_renewed_with_the_steps(
    jobs: Jobs, runner: JobRunner, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(jobs)
    await runner.fill()
    (await painter.begun.get()).steps_done = lambda: 5
    jobs.clock.advance(LEASE_SECONDS - 1)
    await runner.check()  # too early
    assert (await jobs.store.get(job.id, None)).steps_done == 0
    monkeypatch.setattr(runner_module, "RENEW_SECONDS", 0.0)
    await runner.check()
    kept = await jobs.store.get(job.id, None)
    assert (kept.steps_done, kept.lease_until) == (5, jobs.clock.now + LEASE_SECONDS)


async def test_a_gateway_that_stops_gives_its_jobs_back(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    for _ in range(2):
        await submit(jobs)
    await runner.fill()
    for _ in range(2):
        await painter.begun.get()
    await runner.stop()
    await submit(jobs)
    await runner.fill()
    assert painter.begun.empty()
    claimed = [await jobs.leases.claim("other") for _ in range(3)]
    assert sorted(job.attempt for job in claimed if job) == [1, 2, 2]
    assert all(job.failures == 0 for job in claimed if job)


RETRIED: list[tuple[ServiceError, float, int]] = [
    (StageLost(), 2.0, 1),
    (ServiceError(), 2.0, 1),
    (QueueFull(), 2.0, 0),
    (ShuttingDown(), 10.0, 0),
    (LimitReached(seconds=3600.0), 60.0, 0),
]


@pytest.mark.parametrize(("error", "delay", "failures"), RETRIED, ids=lambda value: type(value).__name__)
async def test_what_a_service_cannot_draw_now_is_drawn_later(
    jobs: Jobs, runner: JobRunner, painter: Painter, error: ServiceError, delay: float, failures: int
) -> None:
    job = await submit(jobs)
    painter.errors = [error]
    await draw_all(runner, painter)
    waiting = await jobs.store.get(job.id, None)
    assert (waiting.state, waiting.failures) == (JobState.QUEUED, failures)
    assert waiting.due == jobs.clock.now + delay
    jobs.clock.advance(delay)
    await draw_all(runner, painter)
    assert (await jobs.store.get(job.id, None)).state is JobState.DONE


@pytest.mark.parametrize(
    "error", [InvalidRequest("no", "prompt"), BrokenImage(), PoisonedRequest()], ids=repr
)
async def test_what_would_fail_again_has_failed(
    jobs: Jobs, runner: JobRunner, painter: Painter, error: ServiceError
) -> None:
    job = await submit(jobs)
    painter.errors = [error]
    await draw_all(runner, painter)
    failed = await jobs.store.get(job.id, None)
    assert failed.state is JobState.FAILED
    assert failed.error is not None and failed.error.code == error.code


@pytest.mark.parametrize("make_error", [StageLost, QueueFull])
async def test_a_caller_who_waits_is_told_at_once(
    jobs: Jobs, runner: JobRunner, painter: Painter, make_error: Callable[[], ServiceError]
) -> None:
    painter.errors = [make_error()]
    job = await submit(jobs, is_interactive=True)
    runner.start(job)
    await draw_all(runner, painter)
    assert (await jobs.store.get(job.id, None)).state is JobState.FAILED


async def test_a_job_that_always_fails_is_given_up(jobs: Jobs, runner: JobRunner, painter: Painter) -> None:
    job = await submit(jobs)
    for failures in range(MAX_FAILURES):
        assert (await jobs.store.get(job.id, None)).failures == failures
        painter.errors = [StageLost()]
        await draw_all(runner, painter)
        jobs.clock.advance(60)
    failed = await jobs.store.get(job.id, None)
    assert (failed.state, failed.attempt) == (JobState.FAILED, MAX_FAILURES)


async def test_a_gateway_that_stops_goes_on_for_callers_who_wait(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    job = await submit(jobs, is_interactive=True)
    runner.start(job)
    await painter.begun.get()
    await runner.stop()
    assert runner.find(job.id) is not None
    await runner.stop(is_end=True)
    assert painter.cancelled == [job.id]
    again = await jobs.leases.claim("other")
    assert again is not None and (again.id, again.failures) == (job.id, 0)


async def test_a_job_whose_end_is_written_is_not_cancelled(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    job = await submit(jobs)
    painter.gate.set()
    painter.last_gate.clear()
    await runner.fill()
    await painter.ended.get()
    stops = [asyncio.create_task(work) for work in (runner.check(), runner.cancel(job.id), runner.stop())]
    for _ in range(100):
        await asyncio.sleep(0)
    await jobs.leases.attempts([job.id])  # as long as the check takes to see that the job has ended
    painter.last_gate.set()
    await asyncio.gather(*stops)
    assert painter.cancelled == []
    assert (await jobs.store.get(job.id, None)).state is JobState.DONE


async def test_a_job_is_not_drawn_in_the_context_of_its_request(
    jobs: Jobs, runner: JobRunner, painter: Painter
) -> None:
    CALLER.set("a request")
    runner.start(await submit(jobs, is_interactive=True))
    await painter.begun.get()
    assert painter.callers == ["nobody"]
