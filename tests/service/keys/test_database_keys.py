"""Keys in a database of each kind: made, listed, revoked, rotated, and what readers learn of that."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from safelight.service.database.connection import Database
from safelight.service.database.tables import metadata
from safelight.service.keys.api_key import ApiKey, BadKey, KeyLimits, KeyNotFound, KeySpec, read_spec
from safelight.service.keys.database_keys import USED_SECONDS, DatabaseKeys
from safelight.service.keys.secrets import hash_secret, prefix_of

SPEC = KeySpec("alice", 2.5, 3, KeyLimits(60, 100, 50.5, 12.25), ("a", "b/c"), expires=2e9)


class Clock:
    def __init__(self) -> None:
        self.now = 1.5e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: Database, clock: Clock) -> DatabaseKeys:
    return DatabaseKeys(database, clock)


async def test_a_key_comes_back_as_it_was_made(keys: DatabaseKeys, clock: Clock) -> None:
    key, secret = await keys.create(SPEC)
    assert key.spec == SPEC and key.created == clock.now
    assert [(stored.prefix, stored.digest) for stored in key.secrets] == [
        (prefix_of(secret), hash_secret(secret))
    ]
    assert await keys.get("alice") == await keys.get(key.id) == key
    assert await keys.list_all() == [key]
    assert read_spec({name: value for name, value in key.describe().items() if name in CHOICES}) == SPEC


CHOICES = (
    "name", "weight", "max_priority", "requests_per_minute", "images_per_day", "device_seconds_per_day",
    "spend_per_month", "models", "expires",
)  # fmt: skip


async def test_the_secret_is_nowhere_in_the_database(keys: DatabaseKeys, database: Database) -> None:
    key, secret = await keys.create(SPEC)
    _, second = await keys.rotate("alice", 60.0)
    async with database.read() as connection:
        rows = [
            str(row) for table in metadata.sorted_tables for row in await connection.execute(select(table))
        ]
    assert len(rows) == 3
    for text in (*rows, repr(key), str(key), repr(key.secrets), str(key.describe())):
        assert secret not in text and second not in text
        assert secret[11:20] not in text and hash_secret(secret).hex() not in repr(key)


async def test_a_name_is_used_once_until_its_key_is_revoked(keys: DatabaseKeys, clock: Clock) -> None:
    first, _ = await keys.create(SPEC)
    with pytest.raises(BadKey, match="the name 'alice' is in use"):
        await keys.create(SPEC)
    clock.now += 1
    revoked = await keys.revoke("alice")
    assert revoked == replace(first, revoked=clock.now)
    with pytest.raises(KeyNotFound):
        await keys.get("alice")
    assert (await keys.get(first.id)).revoked == clock.now
    clock.now += 1
    assert await keys.revoke(first.id) == revoked  # once
    second, _ = await keys.create(SPEC)
    assert [key.id for key in await keys.list_all()] == [first.id, second.id]
    assert (await keys.get("alice")).id == second.id


async def test_of_two_that_make_the_same_name_one_succeeds(keys: DatabaseKeys) -> None:
    results = await asyncio.gather(*(keys.create(SPEC) for _ in range(5)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == [*4 * ["BadKey"], "tuple"]
    assert len(await keys.list_all()) == 1


async def test_a_rotated_key_has_two_secrets_for_a_while(keys: DatabaseKeys, clock: Clock) -> None:
    key, first = await keys.create(SPEC)
    clock.now += 10
    rotated, second = await keys.rotate(key.id, 60.0)
    assert rotated.id == key.id and rotated.spec == SPEC
    old, new = rotated.secrets
    assert (old.digest, old.ends) == (hash_secret(first), clock.now + 60.0)
    assert (new.digest, new.ends) == (hash_secret(second), None)
    assert rotated.why_not(old, clock.now + 59.9) is None
    assert rotated.why_not(old, clock.now + 60.0) == "was replaced by another"
    assert rotated.why_not(new, clock.now + 60.0) is None
    clock.now += 30
    again, _ = await keys.rotate(key.id, 3600.0)  # does not lengthen the life of the first
    assert [secret.ends for secret in again.secrets] == [clock.now + 30, clock.now + 3600, None]


async def test_a_revoked_key_is_not_rotated(keys: DatabaseKeys) -> None:
    key, _ = await keys.create(SPEC)
    await keys.revoke("alice")
    with pytest.raises(BadKey, match="was revoked"):
        await keys.rotate(key.id, 0.0)
    with pytest.raises(BadKey, match="overlap_seconds must be between 0 and"):
        await keys.rotate(key.id, -1.0)


@pytest.mark.parametrize("action", ["get", "revoke", "rotate"])
async def test_a_key_that_does_not_exist_is_said(keys: DatabaseKeys, action: str) -> None:
    arguments: tuple[Any, ...] = ("bob", 0.0) if action == "rotate" else ("bob",)
    with pytest.raises(KeyNotFound, match="there is no key 'bob'"):
        await getattr(keys, action)(*arguments)


async def test_readers_ask_for_what_has_changed(keys: DatabaseKeys) -> None:
    first, _ = await keys.create(SPEC)
    second, _ = await keys.create(replace(SPEC, name="bob"))
    changed, revision = await keys.changed_since(0)
    assert _ids(changed) == {first.id, second.id}
    assert await keys.changed_since(revision) == ([], revision)
    await keys.note_use({first.id: 1.6e9})
    assert await keys.changed_since(revision) == ([], revision)  # a use is no change
    await keys.rotate("bob", 0.0)
    rotated, later = await keys.changed_since(revision)
    assert _ids(rotated) == {second.id} and later > revision and len(rotated[0].secrets) == 2
    await keys.revoke("alice")
    revoked, _ = await keys.changed_since(later)
    assert _ids(revoked) == {first.id} and revoked[0].revoked is not None


async def test_no_change_is_overlooked_among_many_at_once(keys: DatabaseKeys) -> None:
    revision, ids = 0, set[str]()
    work = (keys.create(replace(SPEC, name=f"key {number}")) for number in range(16))
    tasks = [asyncio.ensure_future(task) for task in work]
    while not all(task.done() for task in tasks):
        changed, revision = await keys.changed_since(revision)
        ids |= _ids(changed)
    await asyncio.gather(*tasks)
    changed, revision = await keys.changed_since(revision)
    assert len(ids | _ids(changed)) == 16


async def test_uses_are_kept_to_an_hour(keys: DatabaseKeys) -> None:
    key, _ = await keys.create(SPEC)
    start = 1.6e9
    for seconds, expected in (
        (0.0, start),
        (USED_SECONDS, start),
        (USED_SECONDS + 1, start + USED_SECONDS + 1),
    ):
        await keys.note_use({key.id: start + seconds})
        assert (await keys.get(key.id)).last_used == expected


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"name": ""}, "name must be 1 to 64"),
        ({"name": "a\nb"}, "name must be 1 to 64"),
        ({"name": 5}, "name must be text"),
        ({"weight": 0}, "weight must be more than 0"),
        ({"weight": "2"}, "weight must be a number"),
        ({"max_priority": 10}, "max_priority must be between 0 and 9"),
        ({"images_per_day": -1}, "images_per_day must be at least 0"),
        ({"images_per_day": 1.5}, "images_per_day must be a whole number"),
        ({"device_seconds_per_day": float("inf")}, "device_seconds_per_day must be at least 0 and finite"),
        ({"requests_per_minute": 100_001}, "requests_per_minute must be at most 100,000"),
        ({"models": "a"}, "models must be a list"),
        ({"models": [""]}, "models must be at most"),
        ({"models": ["a\nb"]}, "models must be at most"),
        ({"expires": True}, "expires must be a number"),
        ({"expires": -1}, "expires must be a Unix time"),
        ({"colour": 1}, "colour is not a field of a key"),
    ],
)
def test_a_bad_choice_is_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadKey, match=complaint):
        read_spec({"name": "alice"} | values)


def _ids(keys: list[ApiKey]) -> set[str]:
    return {key.id for key in keys}
