"""Connections to the database: SQLite with a write-ahead log, or PostgreSQL; both are written alike."""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, NullPool, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from safelight.service.database.locations import DatabaseLocation

CONNECT_SECONDS = 3
BUSY_MILLISECONDS = 3000  # that a writer of SQLite waits for another
SECONDS = 5.0  # of one use of the database, connecting included
FOLDER_MODE = 0o700
FILE_MODE = 0o600
EXTRA = "PostgreSQL needs the extra postgres: pip install 'safelight[postgres]'"


class DatabaseFailed(Exception):
    """The database cannot be used now; the message says why, without a password."""


class Database:
    """One database. It is connected to when it is first used, and used from one event loop."""

    def __init__(self, location: DatabaseLocation):
        self.location = location
        self._engine: AsyncEngine | None = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that reads. Raises `DatabaseFailed`."""
        async with self._transaction(is_writing=False) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, lock: str = "", seconds: float = SECONDS) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction, which is committed at the end of the block, within `seconds`.

        Of transactions with the same `lock` one runs at a time; SQLite has one writer anyway. Without a name
        they wait for no more than the rows that both change. Raises `DatabaseFailed`.
        """
        async with self._transaction(is_writing=True, seconds=seconds) as connection:
            if lock and self.location.folder is None:
                number = zlib.crc32(lock.encode())
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({number})"))
            yield connection

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    @asynccontextmanager
    async def _transaction(
        self, is_writing: bool, seconds: float = SECONDS
    ) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(seconds):
                if self._engine is None:
                    self._engine = make_engine(self.location)
                async with self._engine.connect() as connection:
                    await connection.execution_options(immediate=is_writing)
                    async with connection.begin():
                        yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:  # TimeoutError has no text of its own
            raise DatabaseFailed(f"{self.location}: {describe(error)}") from error


def make_engine(location: DatabaseLocation) -> AsyncEngine:
    """An engine for the database, which connects when it is used. Raises `DatabaseFailed` or `OSError`."""
    if location.file is None:
        if find_spec("psycopg") is None:
            raise DatabaseFailed(EXTRA)
        return create_async_engine(
            make_url(location.url).set(drivername="postgresql+psycopg"),
            pool_size=2,
            pool_pre_ping=True,  # connections of a server that was restarted are replaced
            connect_args={"connect_timeout": CONNECT_SECONDS},
            hide_parameters=True,  # errors and logs hold no values
        )
    _make_file(location)
    url = URL.create("sqlite+aiosqlite", database=str(location.file))
    engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def describe(error: BaseException) -> str:
    """The first line of the driver's own message, which holds no values of a query."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def _make_file(location: DatabaseLocation) -> None:
    """Make the file, which only this user can read, unless it is there."""
    assert location.folder is not None and location.file is not None
    location.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    os.close(os.open(location.file, os.O_RDWR | os.O_CREAT, FILE_MODE))


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin as `_begin_sqlite` says, and at no other time
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_MILLISECONDS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    """Take the lock at the start of a transaction that writes: one that has read may not get it later."""
    is_writing = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
