"""Fixtures: a new database of each kind, PostgreSQL on a server that the tests start."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from safelight.service.database.connection import Database
from safelight.service.database.locations import DatabaseLocation, find_database
from safelight.service.database.migrate import migrate
from tests.servers import postgres_server

KINDS = ("sqlite", "postgresql")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=KINDS)
async def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    """Where there is an empty database."""
    if request.param == "sqlite":
        return find_database(str(tmp_path / "database"))
    return find_database(await make_postgres_database(request.getfixturevalue("postgres")))


@pytest.fixture
async def database(location: DatabaseLocation) -> AsyncIterator[Database]:
    """A database with its tables."""
    await migrate(location)
    database = Database(location)
    yield database
    await database.close()


async def make_postgres_database(server: str) -> str:
    """The URL of a new database."""
    name = f"test{next(_numbers)}"
    url = make_url(f"{server}/postgres").set(drivername="postgresql+psycopg")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return f"{server}/{name}"
