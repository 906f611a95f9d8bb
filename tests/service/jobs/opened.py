"""The jobs of a database, under a clock that stands still."""

from dataclasses import dataclass

import pytest

from safelight.service.database.connection import Database
from safelight.service.jobs.job_store import JobLimits, JobStore
from safelight.service.jobs.job_table import JobDatabase
from safelight.service.jobs.leases import JobLeases
from tests.clock import ManualClock

LIMITS = JobLimits(max_jobs=20, max_jobs_per_key=12, max_upload_bytes=100, seconds=1000.0)
START = 1_800_000_000.0


@dataclass
class Jobs:
    """The jobs of one database."""

    table: JobDatabase
    store: JobStore
    leases: JobLeases
    clock: ManualClock


def open_jobs(database: Database, clock: ManualClock, limits: JobLimits = LIMITS) -> Jobs:
    table = JobDatabase(database, clock.time)
    return Jobs(table, JobStore(table, limits), JobLeases(table, limits.seconds), clock)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return open_jobs(database, ManualClock(START))
