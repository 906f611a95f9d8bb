"""Fixtures: databases, and the jobs in one."""

from tests.service.databases import database, location, postgres
from tests.service.jobs.opened import jobs

__all__ = ["database", "jobs", "location", "postgres"]
