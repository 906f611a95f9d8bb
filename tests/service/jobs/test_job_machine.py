"""Any order of submissions, claims, renewals, ends and outages, against a model of what must become of jobs.

The model says what every job's state is, and that each ends once, by the attempt that holds it, with one
message to its receiver.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from safelight.service.database.connection import Database
from safelight.service.database.locations import DatabaseLocation, find_database
from safelight.service.database.migrate import migrate
from safelight.service.database.tables import job_uploads, webhook_messages
from safelight.service.database.tables import jobs as job_rows
from safelight.service.errors import KeyReused, StageLost, TooManyJobs
from safelight.service.jobs.job import OPEN_STATES, Job, JobError, JobResult, JobState
from safelight.service.jobs.job_store import IDEMPOTENCY_SECONDS, JobLimits
from safelight.service.jobs.job_table import LEASE_SECONDS, MAX_FAILURES
from tests.clock import ManualClock
from tests.service.databases import KINDS, make_postgres_database
from tests.service.jobs.opened import START, open_jobs
from tests.service.jobs.submissions import make_edit

T = TypeVar("T")
CALLERS = ("alice", "bob")
KEYS = (None, "k1", "k2")
LIMITS = JobLimits(max_jobs=6, max_jobs_per_key=4, seconds=100.0)
RETRY = 7.0
PHASES = (Phase.explicit, Phase.generate)  # a failure is printed as it was found: to shrink it takes minutes
EXAMPLES = 12  # each takes some 0.8 seconds


@dataclass
class Expected:
    """What must be in the row of a job."""

    caller: str
    key: str | None
    digest: str
    created: float
    state: JobState = JobState.QUEUED
    attempt: int = 0
    failures: int = 0
    lease_until: float = 0.0
    due: float = 0.0
    messages: int = 0

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def expires(self) -> float:
        return self.created + LIMITS.seconds

    def is_claimable(self, now: float) -> bool:
        if now >= self.expires:
            return False
        if self.state is JobState.QUEUED:
            return self.due <= now
        return self.has_lost_lease(now) and self.failures < MAX_FAILURES

    def has_lost_lease(self, now: float) -> bool:
        return self.state is JobState.RUNNING and self.lease_until <= now

    def is_held_by(self, job: Job) -> bool:
        return self.state is JobState.RUNNING and self.attempt == job.attempt

    def end(self, state: JobState) -> None:
        self.messages += self.is_open  # an image that expires later is told to nobody
        self.state = state
        if state is not JobState.DONE:
            self.key = None


class JobMachine(RuleBasedStateMachine):
    """The jobs of an empty database. The class attributes say which."""

    location: DatabaseLocation
    claimed: Bundle[Job] = Bundle("claimed")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock(START)
        self.database = Database(self.location)
        self.jobs = open_jobs(self.database, self.clock, LIMITS)
        self.expected: dict[str, Expected] = {}
        self.run(self._empty())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.database.close())
        self.runner.close()

    async def _empty(self) -> None:
        async with self.database.write() as connection:
            for table in (job_uploads, job_rows, webhook_messages):
                await connection.execute(delete(table))

    @rule(
        target=claimed,
        caller=st.sampled_from(CALLERS),
        key=st.sampled_from(KEYS),
        digest=st.sampled_from("01"),
        is_interactive=st.booleans(),
    )
    def submit(self, caller: str, key: str | None, digest: str, is_interactive: bool) -> Any:
        submission = replace(
            make_edit(caller=caller, idempotency_key=key, digest=digest),
            webhook="https://hooks.test/",
            is_interactive=is_interactive,
        )
        keyed: dict[str | None, str] = {
            job.key: job_id for job_id, job in self.expected.items() if job.caller == caller and job.key
        }
        taken = {key: job_id for key, job_id in keyed.items() if self._holds_key(self.expected[job_id])}
        num_open = Counter(job.caller for job in self.expected.values() if job.is_open)
        is_full = num_open.total() >= LIMITS.max_jobs or num_open[caller] >= LIMITS.max_jobs_per_key
        try:
            job, is_new = self.run(self.jobs.store.submit(submission, "gateway"))
        except KeyReused:
            assert self.expected[taken[key]].digest != digest
            return _nothing()
        except TooManyJobs:
            assert is_full and not is_interactive and key not in taken
            return _nothing()
        if key in taken:
            assert (job.id, is_new) == (taken[key], False)
            assert self.expected[job.id].digest == digest
            return _nothing()
        assert is_new and job.id not in self.expected and (is_interactive or not is_full)
        if key in keyed:  # for more than a day
            self.expected[keyed[key]].key = None
        now = self.clock.now
        self.expected[job.id] = Expected(caller, key, digest, now, due=now)
        if not is_interactive:
            return _nothing()
        self._take(job)
        return job

    def _holds_key(self, job: Expected) -> bool:
        return self.clock.now < job.created + IDEMPOTENCY_SECONDS

    @rule(target=claimed)
    def claim(self) -> Any:
        now = self.clock.now
        claimable = {job_id for job_id, job in self.expected.items() if job.is_claimable(now)}
        assert self.run(self.jobs.leases.has_claimable()) == bool(claimable)
        job = self.run(self.jobs.leases.claim("gateway"))
        if job is None:
            assert not claimable
            return _nothing()
        assert job.id in claimable
        self._take(job)
        assert self.run(self.jobs.leases.upload(job)) is not None
        return job

    def _take(self, job: Job) -> None:
        expected = self.expected[job.id]
        expected.failures += expected.state is JobState.RUNNING
        expected.state = JobState.RUNNING
        expected.attempt += 1
        expected.lease_until = self.clock.now + LEASE_SECONDS
        assert (job.attempt, job.failures) == (expected.attempt, expected.failures)

    @rule(job=claimed, steps=st.integers(0, 8))
    def renew(self, job: Job, steps: int) -> None:
        expected = self.expected.get(job.id)
        is_held = expected is not None and expected.is_held_by(job)
        assert self.run(self.jobs.leases.renew(job, steps)) == is_held
        if is_held and expected is not None:
            expected.lease_until = self.clock.now + LEASE_SECONDS

    @rule(job=consumes(claimed), has_failed=st.booleans())
    def release(self, job: Job, has_failed: bool) -> None:
        expected = self.expected.get(job.id)
        is_held = expected is not None and expected.is_held_by(job)
        assert self.run(self.jobs.leases.release(job, RETRY, has_failed)) == is_held
        if is_held and expected is not None:
            expected.state, expected.due = JobState.QUEUED, self.clock.now + RETRY
            expected.failures = job.failures + has_failed

    @rule(job=claimed, outcome=st.sampled_from((JobResult(("a.png",), {}), JobError.of(StageLost()))))
    def end(self, job: Job, outcome: JobResult | JobError) -> None:
        expected = self.expected.get(job.id)
        is_held = expected is not None and expected.is_held_by(job)
        assert self.run(self.jobs.leases.end(job, outcome)) == is_held
        if is_held and expected is not None:
            expected.end(JobState.DONE if isinstance(outcome, JobResult) else JobState.FAILED)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(sorted(self.expected)))
        expected = self.expected[job_id]
        self.run(self.jobs.store.cancel(job_id, expected.caller))
        if expected.is_open:
            expected.end(JobState.CANCELLED)

    @rule(seconds=st.sampled_from((1.0, RETRY, LEASE_SECONDS, LIMITS.seconds, IDEMPOTENCY_SECONDS)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.run(self.jobs.leases.sweep())
        now = self.clock.now
        for job_id, job in list(self.expected.items()):
            is_lost = job.has_lost_lease(now)
            if now < job.expires:
                if is_lost and job.failures >= MAX_FAILURES:
                    job.end(JobState.FAILED)
                continue
            if job.state in (JobState.QUEUED, JobState.DONE) or is_lost:
                job.end(JobState.EXPIRED)
            if now >= job.expires + LIMITS.seconds and not job.is_open:
                del self.expected[job_id]
        for job in self.expected.values():
            job.key = job.key if self._holds_key(job) else None
        # what receivers were told is forgotten, too: counted anew from here
        self.run(self._forget_messages())

    async def _forget_messages(self) -> None:
        async with self.database.write() as connection:
            await connection.execute(delete(webhook_messages))
        for job in self.expected.values():
            job.messages = 0

    @invariant()
    def rows_are_as_expected(self) -> None:
        rows, uploads, messages = self.run(self._read())
        assert {job_id: JobState(row["state"]) for job_id, row in rows.items()} == {
            job_id: job.state for job_id, job in self.expected.items()
        }
        for job_id, job in self.expected.items():
            row = rows[job_id]
            assert (row["attempt"], row["failures"]) == (job.attempt, job.failures), job_id
            assert row["idempotency_key"] == job.key, job_id
            assert (row["ended"] is None) == job.is_open
            assert (row["lease_until"] is not None) == (job.state is JobState.RUNNING)
            assert (row["result"] is not None) == (job.state is JobState.DONE)
            assert (job_id in uploads) == job.is_open, "files are kept until the end"
            assert messages[job_id] == job.messages, "one message for each end"

    async def _read(self) -> tuple[dict[str, Any], set[str], Counter[str]]:
        async with self.database.read() as connection:
            rows = (await connection.execute(select(job_rows))).mappings().all()
            uploads = set((await connection.execute(select(job_uploads.c.job_id))).scalars())
            payloads = (await connection.execute(select(webhook_messages.c.payload))).scalars().all()
        told = Counter(job_id for job_id in self.expected for payload in payloads if job_id in payload)
        return {row["id"]: row for row in rows}, uploads, told


def _nothing() -> Any:
    """No new value for a bundle."""
    return multiple()


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_end_once_whatever_happens(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with asyncio.Runner() as runner:
        if kind == "sqlite":
            place = str(tmp_path / "database")
        else:
            place = runner.run(make_postgres_database(request.getfixturevalue("postgres")))
        location = find_database(place)
        runner.run(migrate(location))
    machine = type("Machine", (JobMachine,), {"location": location})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=PHASES,
        ),
    )
