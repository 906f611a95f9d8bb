"""Brings a database to the tables of this version: at the start of its one owner, or of a command."""

import asyncio
import logging
import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import DatabaseLocation

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = "migrations"
SECONDS = 600.0  # of all migrations, and of waiting for another process that runs them
RETRY_SECONDS = 5.0


async def migrate(location: DatabaseLocation) -> None:
    """Run the migrations that are missing; processes that do so at the same time wait for each other.

    Raises `DatabaseFailed`, also for a database of a later version.
    """
    database = Database(location)
    try:
        async with database.write(LOCK, SECONDS) as connection:
            await connection.run_sync(_upgrade)
    except CommandError as error:  # its revision is not one of ours
        raise DatabaseFailed(f"{location}: made by a later version of the service ({error})") from error
    finally:
        await database.close()


def start_migrations(location: DatabaseLocation) -> threading.Thread:
    """Migrate in a thread of its own, again until it succeeds: a database may start after the service."""
    thread = threading.Thread(target=_migrate_until_done, args=(location,), name="migrations", daemon=True)
    thread.start()
    return thread


def _migrate_until_done(location: DatabaseLocation) -> None:
    pause = threading.Event()
    while True:
        try:
            asyncio.run(migrate(location))
            return
        except DatabaseFailed as error:
            logger.error("the database cannot be brought up to date: %s", error)
            pause.wait(RETRY_SECONDS)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
