"""Rows of the accounts: what has changed in a ledger's state, and a state from all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, Table

from safelight.service.database.tables import (
    usage_minutes,
    usage_records,
    usage_series,
    usage_sources,
    usage_stage_minutes,
)
from safelight.service.usage import documents
from safelight.service.usage.aggregates import (
    LedgerEntry,
    LedgerState,
    PendingUsage,
    PeriodTotals,
    ReplicaEntry,
    ReplicaSeconds,
    RequestTotals,
)
from safelight.service.usage.changes import WHOLE, Changes
from safelight.service.usage.records import RequestOutcome, StoreUsage, UsageRecord

Values = dict[str, Any]


@dataclass(frozen=True)
class ChangedRows:
    """Rows with the present values of what has changed: they can be written any number of times."""

    rows: dict[Table, list[Values]] = field(default_factory=dict)
    ended_records: list[str] = field(default_factory=list)  # ids of rows that are to be deleted
    ended_sources: list[str] = field(default_factory=list)


def changed_rows(state: LedgerState, changes: Changes, service: str, now: float) -> ChangedRows:
    """The rows of what has changed.

    Args:
        state: Of the ledger.
        changes: What has changed in it.
        service: Whose accounts these are.
        now: Unix time.
    """
    changed = ChangedRows()
    changed.rows[usage_minutes] = list(_account_rows(state, changes))
    changed.rows[usage_stage_minutes] = list(_stage_rows(state, changes))
    changed.rows[usage_series] = [
        {"model": model, "document": documents.write_series(state.series[model])}
        for model in sorted(changes.series)
    ]
    changed.rows[usage_records] = list(_record_rows(state, changes, changed.ended_records))
    changed.rows[usage_sources] = list(_source_rows(state, changes, now, changed.ended_sources))
    for rows in changed.rows.values():
        for row in rows:
            row["service"] = service
    return changed


def _period(state: LedgerState, minute: int) -> PeriodTotals | None:
    return state.totals if minute == WHOLE else state.minutes.get(minute)


def _account_rows(state: LedgerState, changes: Changes) -> Iterator[Values]:
    for minute, key, model in sorted(changes.accounts):
        if (period := _period(state, minute)) is None:
            continue
        totals = period.accounts[key, model]
        yield {
            "minute": minute,
            "key_id": key,
            "model": model,
            "key_name": state.key_names.get(key, ""),
            **{outcome.value: totals.requests[outcome] for outcome in RequestOutcome},
            "images": totals.images,
            "device_seconds": totals.device_seconds,
            "store_seconds": totals.store.seconds,
            "stored_bytes": totals.store.num_bytes,
            "codes": documents.write_codes(totals.codes),
            "stages": documents.write_usage(totals.usage),
        }


def _stage_rows(state: LedgerState, changes: Changes) -> Iterator[Values]:
    for minute, stage, model in sorted(changes.stages):
        if (period := _period(state, minute)) is None:
            continue
        seconds = period.stages[stage, model]
        yield {
            "minute": minute,
            "stage": stage,
            "model": model,
            "alive": seconds.alive,
            "busy": seconds.busy,
            "starting": seconds.starting,
            "warm_up": seconds.warm_up,
            "lost": seconds.lost,
            "ticks": documents.write_ticks(seconds.ticks),
        }


def _record_rows(state: LedgerState, changes: Changes, ended: list[str]) -> Iterator[Values]:
    for record_id in sorted(changes.records):
        if (entry := state.entries.get(record_id)) is not None:
            yield _entry_row(entry)
        elif (pending := state.pending.get(record_id)) is not None:
            yield _pending_row(record_id, pending)
        else:
            ended.append(record_id)


def _entry_row(entry: LedgerEntry) -> Values:
    record = entry.record
    return {
        "record_id": record.record_id,
        "ended": record.ended,
        "request_id": record.request_id,
        "outcome": record.outcome.value,
        "code": record.code,
        "key_id": record.key,
        "key_name": record.key_name,
        "model": record.model,
        "num_images": record.num_images,
        "images": entry.images,
        "seconds": record.seconds,
        "user_hash": record.user,
        "device_seconds": sum(amounts.device_seconds for amounts in entry.usage.values()),
        "store_seconds": record.store.seconds,
        "stored_bytes": record.store.num_bytes,
        "usage": documents.write_usage(entry.usage),
    }


def _pending_row(record_id: str, pending: PendingUsage) -> Values:
    return {
        "record_id": record_id,
        "ended": pending.since,
        "outcome": None,
        **dict.fromkeys(("request_id", "code", "key_id", "key_name", "model", "user_hash"), ""),
        **dict.fromkeys(("num_images", "images", "stored_bytes"), 0),
        **dict.fromkeys(("seconds", "store_seconds"), 0.0),
        "device_seconds": sum(event.amounts.device_seconds for _, event in pending.events),
        "usage": documents.write_events(pending.events),
    }


def _source_rows(state: LedgerState, changes: Changes, now: float, ended: list[str]) -> Iterator[Values]:
    for source in sorted(changes.sources):
        if (number := state.next_number.get(source)) is None:
            ended.append(source)
            continue
        is_silent = source in state.silent_replicas
        replica = state.silent_replicas.get(source) or state.replicas.get(source)
        yield {
            "source": source,
            "next_number": number,
            "received": now if replica is None else replica.received,
            "is_silent": int(is_silent),
            "document": "" if replica is None else documents.write_replica(replica.report),
        }


def read_minutes(state: LedgerState, rows: Iterable[Row[Any]]) -> None:
    """Add rows of `usage_minutes`, in the order of the minutes."""
    for row in rows:
        period = _period(state, row.minute) or state.minutes.setdefault(row.minute, PeriodTotals())
        state.key_names[row.key_id] = row.key_name
        period.accounts[row.key_id, row.model] = RequestTotals(
            # like the counters of a ledger, without zeros
            Counter({name: count for name in RequestOutcome if (count := getattr(row, name.value))}),
            Counter(documents.read_codes(row.codes)),
            row.images,
            documents.read_usage(row.stages),
            StoreUsage(row.store_seconds, row.stored_bytes),
        )


def read_stage_minutes(state: LedgerState, rows: Iterable[Row[Any]]) -> None:
    """Add rows of `usage_stage_minutes`, in the order of the minutes."""
    for row in rows:
        period = _period(state, row.minute) or state.minutes.setdefault(row.minute, PeriodTotals())
        period.stages[row.stage, row.model] = ReplicaSeconds(
            row.alive, row.busy, row.starting, row.warm_up, row.lost, documents.read_ticks(row.ticks)
        )


def read_series(state: LedgerState, rows: Iterable[Row[Any]]) -> None:
    """Add rows of `usage_series`."""
    for row in rows:
        state.series[row.model] = documents.read_series(row.document)


def read_records(state: LedgerState, rows: Iterable[Row[Any]]) -> None:
    """Add rows of `usage_records`, the oldest first."""
    for row in rows:
        if row.outcome is None:
            events = documents.read_events(row.usage, row.record_id)
            state.pending[row.record_id] = PendingUsage(row.ended, events)
            continue
        record = UsageRecord(
            record_id=row.record_id,
            request_id=row.request_id,
            outcome=RequestOutcome(row.outcome),
            code=row.code,
            key=row.key_id,
            model=row.model,
            num_images=row.num_images,
            image_usages=(),
            seconds=row.seconds,
            ended=row.ended,
            store=StoreUsage(row.store_seconds, row.stored_bytes),
            user=row.user_hash,
            key_name=row.key_name,
        )
        state.entries[row.record_id] = LedgerEntry(record, row.images, documents.read_usage(row.usage))


def read_sources(state: LedgerState, rows: Iterable[Row[Any]]) -> None:
    """Add rows of `usage_sources`."""
    for row in rows:
        state.next_number[row.source] = row.next_number
        if row.document:
            replicas = state.silent_replicas if row.is_silent else state.replicas
            replicas[row.source] = ReplicaEntry(
                documents.read_replica(row.document, row.source), row.received
            )
