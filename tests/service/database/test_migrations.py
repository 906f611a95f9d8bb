"""Migrations give the tables of the code, once, whoever runs them, on SQLite and PostgreSQL."""

import asyncio
import stat

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import DatabaseLocation
from safelight.service.database.migrate import migrate, start_migrations
from safelight.service.database.tables import metadata


async def test_migrations_give_the_tables_of_the_code(database: Database) -> None:
    def compare(connection: Connection) -> object:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with database.read() as connection:
        assert await connection.run_sync(compare) == []
        rows = await connection.execute(text("SELECT version_num FROM alembic_version"))
        assert rows.scalars().all() == ["0005"]


async def test_many_may_migrate_at_the_same_time_and_again(location: DatabaseLocation) -> None:
    await asyncio.gather(*(migrate(location) for _ in range(4)))
    await migrate(location)
    database = Database(location)
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM api_keys"))).scalar() == 0
    await database.close()


async def test_a_database_of_a_later_version_is_refused(database: Database) -> None:
    async with database.write("test") as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseFailed, match="made by a later version"):
        await migrate(database.location)


async def test_a_migration_that_fails_leaves_nothing(location: DatabaseLocation) -> None:
    database = Database(location)
    async with database.write("test") as connection:  # in the way of the last table
        await connection.execute(text("CREATE TABLE key_usage (x INTEGER)"))
    with pytest.raises(DatabaseFailed, match="already exists"):
        await migrate(location)
    with pytest.raises(DatabaseFailed):
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM api_keys"))
    await database.close()


async def test_the_owner_migrates_in_a_thread(location: DatabaseLocation) -> None:
    thread = start_migrations(location)
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()
    database = Database(location)
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM api_keys"))).scalar() == 0
    await database.close()


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
async def test_only_its_user_reads_the_file(database: Database) -> None:
    folder, file = database.location.folder, database.location.file
    assert folder is not None and file is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    async with database.read() as connection:
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar() == "wal"
