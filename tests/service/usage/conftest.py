"""Fixtures: databases."""

from tests.service.databases import database, location, postgres

__all__ = ["database", "location", "postgres"]
