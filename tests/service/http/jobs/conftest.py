"""Fixtures: a gateway with jobs."""

from tests.service.http.jobs.service import service

__all__ = ["service"]
