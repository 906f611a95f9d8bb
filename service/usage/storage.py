"""The accounts of one service in the database: read whole by a new ledger, written as they change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, Table, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from safelight.service.database.connection import Database
from safelight.service.database.tables import (
    usage_ledgers,
    usage_minutes,
    usage_records,
    usage_series,
    usage_sources,
    usage_stage_minutes,
)
from safelight.service.usage import rows
from safelight.service.usage.aggregates import LedgerState
from safelight.service.usage.changes import WHOLE, Changes
from safelight.service.usage.ledger import MINUTE, MINUTES_KEPT

READ_SECONDS = 60.0
RECORDS_READ = 10_000  # single requests, the newest: for percentiles, and for usage that is still to come
DELETED = 1_000  # rows in one transaction
MINUTES_DELETED = 60  # in one transaction, of all keys
SOURCE_SECONDS = 86_400.0  # after which nothing comes from a source that was silent


class LedgerReplaced(Exception):
    """Another ledger has taken over the accounts: what this one knows is too old to be written."""


class LedgerStorage:
    """The accounts of `service`, which one ledger at a time writes: the one that took them over last.

    Args:
        database: Has the tables.
        service: Name of the service.
        clock: Returns the current Unix time.
    """

    def __init__(self, database: Database, service: str, clock: Callable[[], float] = time.time):
        self._database = database
        self._service = service
        self._clock = clock
        self._epoch = -1
        self._dialect: Any = sqlite if database.location.folder is not None else postgresql
        self._lock = f"usage {service}"

    @property
    def description(self) -> str:
        """Where the accounts are, without a password."""
        return str(self._database.location)

    async def take_over(self) -> LedgerState:
        """The accounts, which no earlier ledger can write from now on. Raises `DatabaseFailed`."""
        async with self._database.write(self._lock, READ_SECONDS) as connection:
            query = self._dialect.insert(usage_ledgers).values(
                service=self._service, epoch=1, since=self._clock(), saved=self._clock(), dropped=0
            )
            query = query.on_conflict_do_update(
                index_elements=["service"], set_={"epoch": usage_ledgers.c.epoch + 1}
            ).returning(usage_ledgers.c.epoch, usage_ledgers.c.since, usage_ledgers.c.dropped)
            row = (await connection.execute(query)).one()
            state = LedgerState(row.since, dropped=row.dropped)
            await self._read(connection, state)
        self._epoch = row.epoch
        return state

    async def save(self, state: LedgerState, changes: Changes) -> None:
        """Write what has changed, all of it or nothing; again is the same as once.

        Raises `LedgerReplaced` or `DatabaseFailed`.
        """
        now = self._clock()
        changed = rows.changed_rows(state, changes, self._service, now)  # before anything else can happen
        dropped = state.dropped
        async with self._database.write(self._lock) as connection:
            is_owner = (usage_ledgers.c.service == self._service) & (usage_ledgers.c.epoch == self._epoch)
            query = update(usage_ledgers).where(is_owner).values(saved=now, dropped=dropped)
            if not (await connection.execute(query)).rowcount:
                raise LedgerReplaced
            for table, values in changed.rows.items():
                if values:
                    await connection.execute(self._upsert(table), values)
            await self._delete(connection, usage_records.c.record_id, changed.ended_records)
            await self._delete(connection, usage_sources.c.source, changed.ended_sources)

    async def delete_old(self, record_seconds: float, minute_seconds: float) -> bool:
        """Delete some rows that are too old, of all services; returns whether there may be more.

        Raises `DatabaseFailed`.
        """
        now = self._clock()
        async with self._database.write(self._lock) as connection:
            has_more = [
                await _delete_before(connection, usage_records.c.ended, now - record_seconds),
                await _delete_before(connection, usage_sources.c.received, now - SOURCE_SECONDS),
            ]
            minute = int((now - minute_seconds) // MINUTE)
            for table in (usage_minutes, usage_stage_minutes):
                has_more.append(await _delete_minutes(connection, table, minute))
        return any(has_more)

    async def _read(self, connection: AsyncConnection, state: LedgerState) -> None:
        def of_service(table: Table) -> Select[Any]:
            return select(table).where(table.c.service == self._service)

        first = int(self._clock() // MINUTE) - MINUTES_KEPT + 1
        for table, read in (
            (usage_minutes, rows.read_minutes),
            (usage_stage_minutes, rows.read_stage_minutes),
        ):
            is_recent = (table.c.minute == WHOLE) | (table.c.minute >= first)
            query = of_service(table).where(is_recent).order_by(table.c.minute)
            read(state, (await connection.execute(query)).all())
        _sort_minutes(state)
        rows.read_series(state, (await connection.execute(of_service(usage_series))).all())
        rows.read_sources(state, (await connection.execute(of_service(usage_sources))).all())
        latest = of_service(usage_records).order_by(usage_records.c.ended.desc()).limit(RECORDS_READ)
        rows.read_records(state, reversed((await connection.execute(latest)).all()))

    def _upsert(self, table: Table) -> Any:
        new = self._dialect.insert(table)
        keys = [column.name for column in table.primary_key]
        values = {column.name: new.excluded[column.name] for column in table.c if column.name not in keys}
        return new.on_conflict_do_update(index_elements=keys, set_=values)

    async def _delete(self, connection: AsyncConnection, column: Any, ids: list[str]) -> None:
        for start in range(0, len(ids), DELETED):
            chosen = column.in_(ids[start : start + DELETED])
            table = column.table
            await connection.execute(delete(table).where(table.c.service == self._service, chosen))


def _sort_minutes(state: LedgerState) -> None:
    """The minutes in order, also those of which one table has nothing."""
    for minute in sorted(state.minutes):
        state.minutes.move_to_end(minute)


async def _delete_before(connection: AsyncConnection, column: Any, moment: float) -> bool:
    """Delete up to `DELETED` rows whose `column` is before `moment`; returns whether there may be more."""
    table = column.table
    keys = list(table.primary_key)
    query = select(*keys).where(column < moment).limit(DELETED)
    rows = (await connection.execute(query)).all()
    if rows:
        await connection.execute(delete(table).where(tuple_(*keys).in_([tuple(row) for row in rows])))
    return len(rows) == DELETED


async def _delete_minutes(connection: AsyncConnection, table: Table, end: int) -> bool:
    """Delete up to `MINUTES_DELETED` minutes before `end`; returns whether there may be more."""
    minute = table.c.minute
    query = select(minute).where(minute > WHOLE, minute < end).order_by(minute).limit(1)
    first: int | None = await connection.scalar(query)
    if first is None:
        return False
    last = min(end, first + MINUTES_DELETED)
    await connection.execute(delete(table).where(minute >= first, minute < last))
    return last < end
