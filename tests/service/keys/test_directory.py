"""A gateway's copy of the keys: fresh within its seconds, cheap for whatever is sent, good in an outage."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import find_database
from safelight.service.database.migrate import migrate
from safelight.service.errors import InvalidKey, KeysUnavailable
from safelight.service.keys.api_key import ApiKey, KeyLimits, KeySpec, StoredSecret
from safelight.service.keys.database_keys import DatabaseKeys
from safelight.service.keys.database_source import DatabaseSource
from safelight.service.keys.directory import KeyDirectory
from safelight.service.keys.key_file import describe_entry
from safelight.service.keys.key_sources import FileSource, KeyCopy
from safelight.service.keys.secrets import hash_secret, make_secret, prefix_of

SECONDS, OUTAGE_SECONDS = 5.0, 100.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """Stands in for `DatabaseKeys`: what has changed is what a test says; counts queries."""

    def __init__(self) -> None:
        self.changes: list[ApiKey] = []
        self.num_queries = 0
        self.is_away = False
        self.uses: dict[str, float] = {}

    async def changed_since(self, revision: int) -> tuple[list[ApiKey], int]:
        self.num_queries += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise DatabaseFailed("away")
        changes, self.changes = self.changes, []
        return changes, revision + len(changes)

    async def note_use(self, times: dict[str, float]) -> None:
        self.uses |= times


class World:
    """A directory of a source with such keys."""

    def __init__(self) -> None:
        self.clock, self.wall, self.keys = Clock(), Clock(), Keys()
        source = DatabaseSource(Database.__new__(Database), SECONDS, OUTAGE_SECONDS, self.clock)
        source.keys = self.keys  # type: ignore[assignment]
        self.source = source
        self.directory = KeyDirectory(None, source, self.wall)

    def make(self, name: str = "alice") -> tuple[ApiKey, str]:
        secret = make_secret()
        stored = StoredSecret(prefix_of(secret), hash_secret(secret))
        key = ApiKey(f"key_{name}", KeySpec(name), (stored,))
        self.keys.changes.append(key)
        return key, secret


async def refusal(directory: KeyDirectory, secret: str) -> str:
    with pytest.raises(InvalidKey) as error:
        await directory.find(secret)
    assert secret not in str(error.value)
    return str(error.value)


async def test_a_key_is_found_by_its_secret_and_by_no_other() -> None:
    world = World()
    key, secret = world.make()
    other, _ = world.make("bob")
    assert await world.directory.find(secret) is key
    for attempt in (
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        prefix_of(secret) + make_secret()[11:],
    ):
        assert await refusal(world.directory, attempt) == "There is no such API key."
    assert "has not the form" in await refusal(world.directory, secret.upper())
    assert "has not the form" in await refusal(world.directory, other.id)


async def test_two_keys_with_one_prefix_are_told_apart() -> None:
    world = World()
    (first, secret), (second, _) = world.make(), world.make("bob")
    twin = prefix_of(secret) + make_secret()[11:]
    second = replace(second, secrets=(StoredSecret(prefix_of(twin), hash_secret(twin)),))
    world.keys.changes = [first, second]
    assert await world.directory.find(secret) is first
    assert await world.directory.find(twin) is second


def test_a_copy_keeps_nothing_of_what_a_key_was() -> None:
    world, copy = World(), KeyCopy()
    for _ in range(100):
        key, secret = world.make()
        copy.put([key])
    assert copy._ids == {prefix_of(secret): [key.id]}
    assert [stored.digest for _, stored in copy.secrets(prefix_of(secret))] == [hash_secret(secret)]


async def test_a_flood_costs_one_query_in_the_seconds_of_the_copy_or_of_a_miss() -> None:
    world = World()
    _, secret = world.make()
    await world.directory.find(secret)
    assert world.keys.num_queries == 1
    await asyncio.gather(*(world.directory.find(secret) for _ in range(1000)))
    for _ in range(1000):
        await refusal(world.directory, make_secret())
        await refusal(world.directory, "sk-nonsense")
    assert world.keys.num_queries == 1
    world.clock.now += 1.0  # of a miss
    for _ in range(1000):
        await refusal(world.directory, make_secret())
    assert world.keys.num_queries == 2
    world.clock.now += SECONDS
    await asyncio.gather(*(world.directory.find(secret) for _ in range(1000)))
    assert world.keys.num_queries == 3
    assert len(world.source.copy) == 1  # what does not exist is not kept


async def test_a_revocation_arrives_within_the_seconds_of_the_copy() -> None:
    world = World()
    key, secret = world.make()
    await world.directory.find(secret)
    world.keys.changes.append(replace(key, revoked=1.0))
    world.clock.now += SECONDS - 0.01
    assert await world.directory.find(secret) is key
    world.clock.now += 0.01
    assert await refusal(world.directory, secret) == "The API key was revoked."


async def test_a_new_key_arrives_within_a_second() -> None:
    world = World()
    await refusal(world.directory, make_secret())
    key, secret = world.make()
    assert await refusal(world.directory, secret) == "There is no such API key."
    world.clock.now += 1.0
    assert await world.directory.find(secret) is key


async def test_a_rotated_secret_is_forgotten_when_its_time_is_over() -> None:
    world = World()
    key, first = world.make()
    await world.directory.find(first)
    second = make_secret()
    old = replace(key.secrets[0], ends=world.wall.now + 60)
    new = StoredSecret(prefix_of(second), hash_secret(second))
    world.keys.changes.append(replace(key, secrets=(old, new)))
    world.clock.now += SECONDS
    for secret in (first, second):
        assert (await world.directory.find(secret)).id == key.id
    world.wall.now += 60
    assert await refusal(world.directory, first) == "The API key was replaced by another."
    assert (await world.directory.find(second)).id == key.id


async def test_an_expired_key_is_refused_at_its_time() -> None:
    world = World()
    key, secret = world.make()
    world.keys.changes = [replace(key, spec=replace(key.spec, expires=world.wall.now + 1))]
    assert (await world.directory.find(secret)).id == key.id
    world.wall.now += 1
    assert await refusal(world.directory, secret) == "The API key has expired."


async def test_known_keys_work_through_an_outage_and_unknown_ones_are_not_refused() -> None:
    world = World()
    key, secret = world.make()
    await world.directory.find(secret)
    world.keys.is_away = True
    world.clock.now += SECONDS
    assert await world.directory.find(secret) is key
    num_queries = world.keys.num_queries
    await asyncio.gather(*(world.directory.find(secret) for _ in range(100)))
    assert world.keys.num_queries == num_queries  # it is asked again after a second, not by every request
    with pytest.raises(KeysUnavailable):
        await world.directory.find(make_secret())  # it may be new
    world.clock.now += OUTAGE_SECONDS - 0.01
    assert await world.directory.find(secret) is key
    world.clock.now += 0.01
    with pytest.raises(KeysUnavailable):
        await world.directory.find(secret)
    world.keys.is_away = False
    world.clock.now += 1.0
    assert await world.directory.find(secret) is key


async def test_without_any_copy_no_key_is_refused() -> None:
    world = World()
    world.keys.is_away = True
    with pytest.raises(KeysUnavailable):
        await world.directory.find(make_secret())


async def test_a_use_is_noted_once_an_hour() -> None:
    world = World()
    key, secret = world.make()
    for _ in range(3):
        await world.directory.find(secret)
        world.clock.now += SECONDS
    assert list(world.keys.uses) == [key.id]
    world.keys.uses.clear()
    await world.directory.find(secret)
    assert world.keys.uses == {}


async def test_the_database_is_a_source(database: Database) -> None:
    source = DatabaseSource(database, SECONDS, OUTAGE_SECONDS)
    directory = KeyDirectory(None, source)
    await refusal(directory, make_secret())
    _, secret = await source.keys.create(KeySpec("alice", limits=KeyLimits(images_per_day=5)))
    await source.refresh(0.0)
    key = await directory.find(secret)
    assert (key.spec.name, key.spec.limits.images_per_day) == ("alice", 5)
    await source.keep_uses()
    assert (await source.keys.get("alice")).last_used is not None
    await source.keys.revoke("alice")
    await source.refresh(0.0)
    assert await refusal(directory, secret) == "The API key was revoked."


async def test_a_database_from_a_backup_is_read_anew(tmp_path: Path) -> None:
    folders = [tmp_path / "before", tmp_path / "after"]
    databases = [Database(find_database(str(folder))) for folder in folders]
    for database in databases:
        await migrate(database.location)
    source = DatabaseSource(databases[0], SECONDS, OUTAGE_SECONDS)
    directory = KeyDirectory(None, source)
    secrets = [(await DatabaseKeys(databases[0]).create(KeySpec(name)))[1] for name in ("a", "b", "c")]
    for secret in secrets:
        await directory.find(secret)
    _, secret = await DatabaseKeys(databases[1]).create(KeySpec("d"))
    source.keys = DatabaseKeys(databases[1])
    await source.refresh(0.0)
    assert (await directory.find(secret)).spec.name == "d"
    assert await refusal(directory, secrets[0]) == "There is no such API key."
    for database in databases:
        await database.close()


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of keys in place of the one before, as a mounted Secret changes: by a rename."""

    def write(*entries: object) -> Path:
        partial = tmp_path / "partial"
        partial.write_text(json.dumps({"keys": entries}))
        os.replace(partial, tmp_path / "keys.json")
        return tmp_path / "keys.json"

    return write


def entry(name: str, secret: str, **fields: object) -> dict[str, object]:
    return describe_entry(KeySpec(name), StoredSecret(prefix_of(secret), hash_secret(secret))) | fields


async def test_a_file_is_read_again_when_it_changes(write_file: Callable[..., Path]) -> None:
    first, second = make_secret(), make_secret()
    clock = Clock()
    source = FileSource(write_file(entry("alice", first, images_per_day=7)), clock)
    directory = KeyDirectory(source)
    key = await directory.find(first)
    assert (key.spec.name, key.spec.limits.images_per_day) == ("alice", 7)
    path = write_file(entry("bob", second))
    clock.now += 1.0
    assert (await directory.find(second)).spec.name == "bob"
    assert await refusal(directory, first) == "There is no such API key."
    path.write_text("{")  # the keys before stay, until it is mended
    clock.now += 1.0
    assert (await directory.find(second)).spec.name == "bob"
    path.unlink()
    clock.now += 2.0
    assert (await directory.find(second)).spec.name == "bob"


async def test_file_and_database_are_both_asked(write_file: Callable[..., Path]) -> None:
    world, secret = World(), make_secret()
    key, other = world.make()
    directory = KeyDirectory(FileSource(write_file(entry("bob", secret))), world.source)
    assert (await directory.find(secret)).spec.name == "bob"
    assert await directory.find(other) is key
