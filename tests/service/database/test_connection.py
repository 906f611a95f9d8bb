"""Reading and writing a database of each kind: locks, failures, and what error texts hold."""

import asyncio
import contextlib
import gc
import random
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, text, update

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import BadDatabase, DatabaseLocation, find_database
from safelight.service.database.tables import key_usage
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from tests.live import free_port
from tests.servers import PASSWORD

ROW = {"key_id": "a", "quota": "images", "period": "2026-11-30"}


async def test_writers_with_the_same_lock_wait_for_each_other(database: Database) -> None:
    """Each reads a number and writes one more, from connections of its own: none is lost."""
    async with database.write("count") as connection:
        await connection.execute(insert(key_usage), ROW | {"amount": 0})

    async def count() -> None:
        other = Database(database.location)
        async with other.write("count") as connection:
            amount = int(await connection.scalar(select(key_usage.c.amount)) or 0)
            await asyncio.sleep(0)
            await connection.execute(update(key_usage).values(amount=amount + 1))
        await other.close()

    await asyncio.gather(*(count() for _ in range(12)))
    async with database.read() as connection:
        assert await connection.scalar(select(key_usage.c.amount)) == 12


async def test_what_fails_is_not_written(database: Database) -> None:
    with pytest.raises(KeyError):
        async with database.write("test") as connection:
            await connection.execute(insert(key_usage), ROW | {"amount": 1})
            raise KeyError
    async with database.read() as connection:
        assert (await connection.execute(select(key_usage))).all() == []


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    async with database.write("test") as connection:
        await connection.execute(insert(key_usage), ROW | {"amount": 1})
        async with database.read() as reader:
            assert (await reader.execute(select(key_usage))).all() == []


async def test_errors_hold_no_values_and_no_password(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(DatabaseFailed) as failure:
            async with database.write("test") as connection:
                await connection.execute(insert(key_usage), ROW | {"quota": "secret" * 3, "amount": 1})
                await connection.execute(insert(key_usage), ROW | {"quota": "secret" * 3, "amount": 1})
    assert "secret" not in str(failure.value) and PASSWORD not in str(failure.value)
    assert PASSWORD not in f"{database.location!r} {database.location}"


async def test_a_server_that_is_away_is_said_without_its_password() -> None:
    database = Database(find_database(f"postgresql://user:{PASSWORD}@127.0.0.1:{free_port()}/name"))
    with pytest.raises(DatabaseFailed, match="postgresql://127.0.0.1/name: connection failed") as failure:
        async with database.read():
            pass
    assert PASSWORD not in str(failure.value)
    await database.close()


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = Database(DatabaseLocation(tmp_path / "file" / "folder"))
    with pytest.raises(DatabaseFailed, match="Not a directory"):
        async with database.read():
            pass


async def test_a_server_that_was_restarted_is_used_again(database: Database) -> None:
    async with database.read() as connection:
        await connection.execute(text("SELECT 1"))
        pids = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    if database.location.folder is None:
        other = Database(database.location)
        async with other.write("test") as connection:
            await connection.execute(text(f"{pids} AND datname = current_database()"))
        await other.close()
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/var/lib/safelight", "/var/lib/safelight/safelight.sqlite3"),
        ("postgresql://user:swordfish@host:5433/name?sslmode=require", "postgresql://host/name"),
        ("postgres://host/name", "postgresql://host/name"),
    ],
)
def test_a_location_is_a_folder_or_a_server(value: str, shown: str) -> None:
    assert str(find_database(value)) == shown


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("data", "absolute path"),
        ("mysql://user:swordfish@host/name", "starts with postgresql://; got mysql://"),
        ("postgresql://user:swordfish@host", "must name a database"),
        ("postgresql://user:swordfish@host:0/name", "must name a database"),
        ("postgresql://user:swordfish@[::1/name", "must name a database"),
    ],
)
def test_other_locations_are_refused_without_their_password(value: str, complaint: str) -> None:
    with pytest.raises(BadDatabase, match=complaint) as refusal:
        find_database(value)
    assert "swordfish" not in str(refusal.value)


def test_the_default_is_in_the_users_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_database("").file == tmp_path / "safelight" / "safelight.sqlite3"


@pytest.mark.filterwarnings("error")
async def test_uses_that_are_cancelled_or_late_leave_no_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with the garbage collector nor, of SQLite, in a thread."""
    moments, threads = random.Random(0), threading.active_count()
    leaks: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda leak: leaks.append(repr(leak.exc_value)))

    async def use(seconds: float) -> None:
        with contextlib.suppress(DatabaseFailed):
            async with database.write(seconds=seconds) as connection:
                await connection.execute(insert(key_usage), ROW | {"amount": 1})
                await connection.execute(delete(key_usage))

    for index in range(60):
        moment = moments.random() * 0.02
        tasks = [asyncio.create_task(use(moment if index % 2 else 5.0)) for _ in range(4)]
        await asyncio.sleep(moment)
        await cancel_and_wait(*tasks)
        gc.collect()
    await database.close()
    assert leaks == []
    async with asyncio.timeout(10):
        while threading.active_count() > threads:  # a thread ends soon after its connection
            await asyncio.sleep(0.01)
