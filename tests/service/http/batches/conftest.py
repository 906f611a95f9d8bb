"""Fixtures: a gateway with batches, and OpenAI's client for it."""

from tests.service.http.batches.service import batches, client, service

__all__ = ["batches", "client", "service"]
