"""Keys in the database: make, list, revoke, rotate, and what has changed."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from secrets import token_hex
from typing import Any

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy import func as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.connection import Database
from safelight.service.database.tables import api_key_secrets, api_keys
from safelight.service.keys.api_key import ApiKey, BadKey, KeyLimits, KeyNotFound, KeySpec, StoredSecret
from safelight.service.keys.secrets import hash_secret, make_secret, prefix_of

LOCK = "api_keys"
USED_SECONDS = 3600.0  # how coarse `last_used` is
MAX_OVERLAP_SECONDS = 90 * 86400.0
LIMITS = [limit.name for limit in fields(KeyLimits)]


class DatabaseKeys:
    """The keys in `database`. Every method raises `DatabaseFailed` if that cannot be used.

    Args:
        database: Has been migrated.
        clock: Returns the current Unix time.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self._database = database
        self._clock = clock

    async def create(self, spec: KeySpec) -> tuple[ApiKey, str]:
        """Make a key, and its secret, which is kept nowhere. Raises `BadKey` if the name is in use."""
        secret, key_id, now = make_secret(), f"key_{token_hex(8)}", self._clock()
        async with self._database.write(LOCK) as connection:
            if await _find(connection, api_keys.c.name == spec.name, api_keys.c.revoked.is_(None)):
                raise BadKey(f"the name {spec.name!r} is in use; revoke that key first", "name")
            revision = await _next_revision(connection)
            row = {"id": key_id, "created": now, "revision": revision} | _columns(spec)
            await connection.execute(insert(api_keys), row)
            await _add_secret(connection, key_id, secret, now)
            [key] = await _find(connection, api_keys.c.id == key_id)
        return key, secret

    async def list_all(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        async with self._database.read() as connection:
            return await _find(connection)

    async def get(self, name: str) -> ApiKey:
        """The key with this id, or the one in use with this name. Raises `KeyNotFound`."""
        async with self._database.read() as connection:
            return await _get(connection, name)

    async def revoke(self, name: str) -> ApiKey:
        """End a key for ever; does nothing to one that was revoked. Raises `KeyNotFound`."""
        async with self._database.write(LOCK) as connection:
            key = await _get(connection, name)
            if key.revoked is None:
                await _change(connection, key.id, revoked=self._clock())
            return await _get(connection, key.id)

    async def rotate(self, name: str, overlap_seconds: float) -> tuple[ApiKey, str]:
        """Give a key a new secret; those before it open it for `overlap_seconds` more.

        Raises `KeyNotFound`, and `BadKey` for a key that was revoked.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            raise BadKey(f"overlap_seconds must be between 0 and {MAX_OVERLAP_SECONDS:g}", "overlap_seconds")
        secret, now = make_secret(), self._clock()
        async with self._database.write(LOCK) as connection:
            key = await _get(connection, name)
            if key.revoked is not None:
                raise BadKey(f"{key.spec.name!r} was revoked: make another key")
            ends = now + overlap_seconds
            of_key = api_key_secrets.c.key_id == key.id
            is_later = or_(api_key_secrets.c.ends.is_(None), api_key_secrets.c.ends > ends)
            await connection.execute(update(api_key_secrets).where(of_key, is_later).values(ends=ends))
            await _add_secret(connection, key.id, secret, now)
            await _change(connection, key.id)
            return await _get(connection, key.id), secret

    async def changed_since(self, revision: int) -> tuple[list[ApiKey], int]:
        """The keys that have changed after `revision`, and the revision that they have brought."""
        async with self._database.read() as connection:
            latest = await connection.scalar(select(sql.max(api_keys.c.revision))) or 0
            keys = await _find(connection, api_keys.c.revision > revision) if latest > revision else []
            return keys, latest

    async def note_use(self, times: Mapping[str, float]) -> None:
        """Keep when keys were used, by id, unless what is kept is less than an hour older."""
        async with self._database.write(LOCK) as connection:
            for key_id, time_of_use in times.items():
                before = api_keys.c.last_used
                is_old = or_(before.is_(None), before < time_of_use - USED_SECONDS)
                query = update(api_keys).where(api_keys.c.id == key_id, is_old)
                await connection.execute(query.values(last_used=time_of_use))


async def _get(connection: AsyncConnection, name: str) -> ApiKey:
    keys = await _find(connection, api_keys.c.id == name)
    keys = keys or await _find(connection, api_keys.c.name == name, api_keys.c.revoked.is_(None))
    if not keys:
        raise KeyNotFound(f"there is no key {name[:64]!r}")
    return keys[0]


async def _find(connection: AsyncConnection, *where: ColumnElement[bool]) -> list[ApiKey]:
    rows = await connection.execute(
        select(api_keys).where(*where).order_by(api_keys.c.created, api_keys.c.id)
    )
    keys = [_make_key(row) for row in rows.mappings()]
    query = select(api_key_secrets).order_by(api_key_secrets.c.created)
    if where:
        query = query.join(api_keys).where(*where)
    secrets: defaultdict[str, list[StoredSecret]] = defaultdict(list)
    for row in (await connection.execute(query)).mappings():
        secrets[row["key_id"]].append(StoredSecret(row["prefix"], bytes.fromhex(row["digest"]), row["ends"]))
    return [replace(key, secrets=tuple(secrets[key.id])) for key in keys]


def _make_key(row: Mapping[Any, Any]) -> ApiKey:
    spec = KeySpec(
        row["name"],
        row["weight"],
        row["max_priority"],
        KeyLimits(**{limit: row[limit] for limit in LIMITS}),
        tuple(row["models"].split("\n")) if row["models"] else (),
        row["expires"],
    )
    return ApiKey(row["id"], spec, (), row["created"], row["revoked"], row["last_used"])


def _columns(spec: KeySpec) -> dict[str, Any]:
    names = ("name", "weight", "max_priority", "expires")
    columns = {name: getattr(spec, name) for name in names} | {"models": "\n".join(spec.models)}
    return columns | {limit: getattr(spec.limits, limit) for limit in LIMITS}


async def _add_secret(connection: AsyncConnection, key_id: str, secret: str, now: float) -> None:
    digest, prefix = hash_secret(secret).hex(), prefix_of(secret)
    row = {"digest": digest, "prefix": prefix, "key_id": key_id, "created": now}
    await connection.execute(insert(api_key_secrets), row)


async def _change(connection: AsyncConnection, key_id: str, **values: Any) -> None:
    revision = await _next_revision(connection)
    query = update(api_keys).where(api_keys.c.id == key_id).values(revision=revision, **values)
    await connection.execute(query)


async def _next_revision(connection: AsyncConnection) -> int:
    """One more than any key has: under `LOCK` the next one is committed after it."""
    return int(await connection.scalar(select(sql.max(api_keys.c.revision))) or 0) + 1
