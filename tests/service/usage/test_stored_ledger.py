"""The ledger in the database: nothing is lost or counted twice, whatever ends, fails or is repeated."""

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from safelight.service.database import connection as connection_module
from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import FILE_NAME, find_database
from safelight.service.database.migrate import migrate
from safelight.service.database.tables import (
    usage_minutes,
    usage_records,
    usage_sources,
    usage_stage_minutes,
)
from safelight.service.errors import AccountsUnavailable
from safelight.service.settings import Settings
from safelight.service.usage import storage as storage_module
from safelight.service.usage import stored_ledger as stored_ledger_module
from safelight.service.usage.aggregates import LedgerState
from safelight.service.usage.changes import Changes
from safelight.service.usage.events import GatewayReport, UsageReport
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.storage import LedgerReplaced, LedgerStorage
from safelight.service.usage.stored_ledger import StoredLedger
from tests.service.usage.test_ledger import (
    Clock,
    event,
    gateway_report,
    make_events,
    make_queues,
    record,
    stage_report,
)

SETTINGS = Settings(price_per_device_hour=3600.0)
PATIENCE = 60.0


class FaultyStorage(LedgerStorage):
    """A storage whose next transaction fails: before it is committed, or after."""

    fault = ""
    saves = 0

    async def save(self, state: LedgerState, changes: Changes) -> None:
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise DatabaseFailed("away")
        await super().save(state, changes)
        self.saves += 1
        if fault == "after":
            raise DatabaseFailed("the answer was lost")


def make_ledger(database: Database, clock: Callable[[], float]) -> tuple[StoredLedger, FaultyStorage]:
    storage = FaultyStorage(database, "test", clock)
    return StoredLedger(SETTINGS, storage, None, clock), storage


@asynccontextmanager
async def stored_ledger(
    database: Database, clock: Callable[[], float] | None = None
) -> AsyncIterator[tuple[StoredLedger, FaultyStorage]]:
    """A ledger, killed at the end of the block."""
    ledger, storage = make_ledger(database, clock or Clock())
    try:
        yield ledger, storage
    finally:
        ledger.stop()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables."""
    folder = tmp_path_factory.mktemp("template")
    asyncio.run(migrate(find_database(str(folder))))
    return folder / FILE_NAME


def sums(state: LedgerState) -> dict[str, Any]:
    """What must be the same; the order in which requests of the same moment are read is not."""
    pending = {record_id: sorted(pending.events, key=str) for record_id, pending in state.pending.items()}
    return {
        "totals": state.totals,
        "minutes": dict(state.minutes),
        "series": dict(state.series),
        "entries": dict(state.entries),
        "pending": pending,
        "replicas": {source: entry.report.totals for source, entry in state.replicas.items()},
        "names": state.key_names,
        "dropped": state.dropped,
    }


class Senders:
    """Gateways and stages, each of which sends a report until it is acknowledged."""

    def __init__(self, queues: list[list[UsageReport]], database: Database) -> None:
        self._queues = [list(queue) for queue in queues]
        self._database = database
        self._clock = Clock()
        self._ledgers = [make_ledger(database, self._clock) for _ in range(2)]

    async def step(self, sender: int, ledger: int, fault: str) -> None:
        """One attempt to deliver the next report of a sender; afterwards the ledger may be killed."""
        queues = [queue for queue in self._queues if queue]
        if not queues:
            return
        queue = queues[sender % len(queues)]
        stored, storage = self._ledgers[ledger]
        storage.fault = fault.partition(" ")[0]
        try:
            await stored.receive(queue[0])
            queue.pop(0)
        except AccountsUnavailable:
            pass
        if fault.endswith("killed"):
            stored.stop()
            self._ledgers[ledger] = make_ledger(self._database, self._clock)

    async def finish(self) -> LedgerState:
        """Deliver what is left; what the next ledger reads."""
        while any(self._queues):
            await self.step(0, 0, "")
        for stored, _ in self._ledgers:
            stored.stop()
        state = await LedgerStorage(self._database, "test", self._clock).take_over()
        await self._database.close()
        return state


FAULTS = ("", "", "before", "after", " killed", "before killed", "after killed")
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from(FAULTS)), min_size=1, max_size=24
)


async def play(
    database: Database, queues: list[list[UsageReport]], steps: list[tuple[int, int, str]]
) -> LedgerState:
    senders = Senders(queues, database)
    for step in steps:
        await senders.step(*step)
    return await senders.finish()


def uninterrupted(queues: list[list[UsageReport]]) -> LedgerState:
    """What one ledger knows to which each report came once."""
    ledger = Ledger(Clock())
    for queue in queues:
        for report in queue:
            ledger.receive(report)
    return ledger.state


def random_queues(rng: random.Random, num_requests: int) -> list[list[UsageReport]]:
    """Reports of a gateway and two replicas; some requests never end."""
    outcomes = {str(n): rng.choice(list(RequestOutcome)) for n in range(num_requests)}
    queues = make_queues(rng, outcomes, make_events(rng, num_requests + 2, 2))
    queues[0] = [
        replace(report, retried=(("m", number % 2),), dropped=number % 3)
        for number, report in enumerate(queues[0])
        if isinstance(report, GatewayReport)
    ]
    return queues


@given(st.randoms(use_true_random=False), st.integers(1, 6), STEPS)
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_fault_changes_the_sums(
    template: Path, rng: random.Random, num_requests: int, steps: list[tuple[int, int, str]]
) -> None:
    """Two ledgers get the reports by turns; transactions fail, before or after they are made; ledgers die."""
    folder = template.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(template, folder)
    queues = random_queues(rng, num_requests)
    state = asyncio.run(play(Database(find_database(str(folder))), queues, steps))
    assert sums(state) == sums(uninterrupted(queues))


async def test_no_fault_changes_the_sums_in_any_database(database: Database) -> None:
    rng = random.Random(7)
    queues = random_queues(rng, 5)
    steps = [(rng.randrange(4), rng.randrange(2), rng.choice(FAULTS)) for _ in range(20)]
    assert sums(await play(database, queues, steps)) == sums(uninterrupted(queues))


REPORTS: tuple[UsageReport, ...] = (
    gateway_report(0, record("a", images=2), record("b", RequestOutcome.REFUSED), record("c", key="other")),
    stage_report(0, event("a", 1.5, 1000, nfe=4), event("later", 0.5), event("", 0.25), busy=3.0, open=0.5),
    stage_report(0, event("c", 0.25), stage="decode", source="two", busy=0.5),
)


def bills(report: AccountingReport) -> dict[str, Any]:
    """A report without what depends on the moment."""
    return report.model_dump(
        exclude={"now", "window_seconds", "images_per_hour", "replicas", "peak_flops", "mfu", "models"}
    )


async def test_accounts_are_the_same_after_a_restart(database: Database) -> None:
    async with stored_ledger(database) as (ledger, _):
        await asyncio.gather(*map(ledger.receive, REPORTS))
        before = await ledger.report(None, 10)
        window = await ledger.report(60.0, 0)
        metrics = await ledger.snapshot()
    async with stored_ledger(database) as (ledger, _):
        await ledger.receive(gateway_report(0, source="new"))
        after = await ledger.report(None, 10)
        assert sorted(entry.request_id for entry in after.latest) == ["theirs"] * 3
        before.latest.sort(key=str), after.latest.sort(key=str)
        assert bills(after) == bills(before)
        assert (await ledger.report(60.0, 0)).accounts == window.accounts
        assert (await ledger.snapshot()).requests == metrics.requests
    assert before.images == 3 and before.storage.unsaved_seconds == 0.0
    assert str(database.location) == before.storage.database
    [other, me] = sorted(before.accounts, key=lambda account: account.images)
    assert (me.key, me.spend, other.spend) == ("me", 1.5, 0.25)


async def test_the_bill_is_in_columns(database: Database) -> None:
    """The query of docs/accounts.md."""
    async with stored_ledger(database) as (ledger, _):
        await asyncio.gather(*map(ledger.receive, REPORTS))
    query = """
        SELECT key_id, model, sum(done), sum(images), sum(device_seconds) FROM usage_minutes
        WHERE service = 'test' AND minute BETWEEN 1 AND 100 GROUP BY key_id, model ORDER BY key_id
    """
    async with database.read() as connection:
        rows = (await connection.execute(text(query))).all()
    assert [tuple(row) for row in rows] == [("me", "m", 1, 2, 1.5), ("other", "m", 1, 1, 0.25)]


async def test_nothing_is_acknowledged_before_it_is_written(database: Database) -> None:
    begin, end = asyncio.Event(), asyncio.Event()

    async def save(state: LedgerState, changes: Changes) -> None:
        begin.set()
        await end.wait()

    async with stored_ledger(database) as (ledger, storage):
        storage.save = save  # type: ignore[method-assign]
        receiving = asyncio.ensure_future(ledger.receive(REPORTS[0]))
        await asyncio.wait_for(begin.wait(), PATIENCE)
        assert not receiving.done()
        end.set()
        await asyncio.wait_for(receiving, PATIENCE)


async def test_reports_that_come_together_are_written_together(database: Database) -> None:
    async with stored_ledger(database) as (ledger, storage):
        reports = [gateway_report(0, record(str(n)), source=str(n)) for n in range(50)]
        await asyncio.gather(*map(ledger.receive, reports))
        assert storage.saves <= 2


async def test_idle_replicas_are_written_once_a_minute(database: Database) -> None:
    clock = Clock()
    async with stored_ledger(database, clock) as (ledger, storage):
        for number in range(121):
            await ledger.receive(stage_report(number))
            clock.time += 1.0
        assert storage.saves == 2
    state = await LedgerStorage(database, "test", clock).take_over()
    assert state.totals.stages["denoise", ""].alive == 120.0


async def test_a_database_that_is_away_loses_nothing_and_says_so(database: Database) -> None:
    clock = Clock()
    async with stored_ledger(database, clock) as (ledger, storage):
        await ledger.receive(gateway_report(0, record("a")))
        written = await ledger.snapshot()
        storage.fault = "before"
        with pytest.raises(AccountsUnavailable):
            await ledger.receive(gateway_report(1, record("b")))
        clock.time += 30.0
        shown, report = await ledger.snapshot(), await ledger.report(None, 0)
        assert shown == replace(written, unsaved_seconds=30.0), "a counter has only what is written"
        assert (report.storage.unsaved_seconds, report.storage.error) == (30.0, "away")
        await ledger.receive(gateway_report(1, record("b")))
        assert (await ledger.report(None, 0)).storage.unsaved_seconds == 0.0
        requests = (await ledger.snapshot()).requests
        assert requests is not None and requests["m"].images == 2


async def test_a_database_that_is_away_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_ledger_module, "RETRY_SECONDS", 0.01)
    location = find_database(str(tmp_path / "database"))
    database = Database(location)
    async with stored_ledger(database) as (ledger, _):
        with pytest.raises(AccountsUnavailable):
            await ledger.receive(REPORTS[0])
        with pytest.raises(AccountsUnavailable):
            await ledger.report(None, 0)
        snapshot = await ledger.snapshot()
        assert snapshot.requests is None and snapshot.unsaved_seconds > 0.0
        assert set((await ledger.status()).values()) == {None}
        await migrate(location)
        async with asyncio.timeout(PATIENCE):
            while (await ledger.snapshot()).requests is None:
                await asyncio.sleep(0.01)
        assert (await ledger.snapshot()).unsaved_seconds == 0.0
        await ledger.receive(REPORTS[0])
        assert (await ledger.report(None, 0)).images == 3


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
async def test_a_file_that_another_writes_is_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "BUSY_MILLISECONDS", 10)
    async with stored_ledger(database) as (ledger, _):
        await ledger.receive(REPORTS[0])
        async with Database(database.location).write("another"):
            with pytest.raises(AccountsUnavailable):
                await ledger.receive(REPORTS[1])
            assert "locked" in (await ledger.report(None, 0)).storage.error
        await ledger.receive(REPORTS[1])
        assert (await ledger.report(None, 0)).device_seconds["denoise"] == 1.5


async def test_a_ledger_that_was_replaced_writes_nothing(database: Database) -> None:
    clock = Clock()
    old, new = (LedgerStorage(database, "test", clock) for _ in range(2))
    first = Ledger(clock, await old.take_over())
    second = Ledger(clock, await new.take_over())
    for ledger in (first, second):
        ledger.receive(REPORTS[0])
    with pytest.raises(LedgerReplaced):
        await old.save(first.state, first.changes)
    await new.save(second.state, second.changes)
    await new.save(second.state, second.changes)  # again is the same as once
    state = await old.take_over()
    assert sums(state) == sums(second.state)


async def test_services_in_one_database_have_accounts_of_their_own(database: Database) -> None:
    clock = Clock()
    storages = [LedgerStorage(database, name, clock) for name in ("one", "two")]
    states = []
    for number, storage in enumerate(storages):
        ledger = Ledger(clock, await storage.take_over())
        ledger.receive(gateway_report(0, *(record(str(n)) for n in range(1 + number))))
        states.append(ledger.state)
        await storage.save(ledger.state, ledger.changes)
    for storage, state in zip(storages, states, strict=True):
        assert sums(await storage.take_over()) == sums(state)
    assert [state.totals.all_requests().images for state in states] == [1, 2]


async def counts(database: Database) -> list[int]:
    """The rows of the tables that old rows are deleted from."""
    tables = usage_records, usage_sources, usage_minutes, usage_stage_minutes
    async with database.read() as connection:
        return [await connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


async def test_old_rows_are_deleted_a_few_at_a_time_and_the_sums_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "DELETED", 2)
    monkeypatch.setattr(storage_module, "MINUTES_DELETED", 1)
    clock = Clock()
    storage = LedgerStorage(database, "test", clock)
    ledger = Ledger(clock, await storage.take_over())
    for number in range(6):
        ledger.receive(gateway_report(number, record(str(number), ended=clock.time)))
        ledger.receive(stage_report(number, event(str(number), 1.0), busy=2.0 * number))
        clock.time += 60.0
    await storage.save(ledger.state, ledger.changes.take())
    assert await counts(database) == [6, 2, 7, 7]
    assert await storage.delete_old(150.0, 200.0)
    assert await counts(database) == [4, 2, 6, 6]
    while await storage.delete_old(150.0, 200.0):
        pass
    assert await counts(database) == [2, 2, 4, 4]
    state = await storage.take_over()
    assert state.totals == ledger.totals and sorted(state.entries) == ["4", "5"]
    clock.time += storage_module.SOURCE_SECONDS + 1.0
    while await storage.delete_old(150.0, 200.0):
        pass
    assert await counts(database) == [0, 0, 1, 1]


async def test_a_report_that_comes_after_a_restart_continues_its_replica(database: Database) -> None:
    clock = Clock()
    reference = Ledger(clock)
    for restarts in range(3):
        async with stored_ledger(database, clock) as (ledger, _):
            for number in (2 * restarts, 2 * restarts + 1):
                report = stage_report(number, event("a", 0.5), busy=3.0 * number, starting=1.0, open=0.125)
                reference.receive(report)
                await ledger.receive(report)
                clock.time += 4.0
            await ledger.receive(gateway_report(restarts, record(str(restarts))))
            reference.receive(gateway_report(restarts, record(str(restarts))))
    state = await LedgerStorage(database, "test", clock).take_over()
    assert sums(state) == sums(reference.state)
    assert state.totals.stages["denoise", ""].alive == 20.0


async def test_only_the_newest_records_are_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "RECORDS_READ", 3)
    clock = Clock()
    storage = LedgerStorage(database, "test", clock)
    ledger = Ledger(clock, await storage.take_over())
    ledger.receive(gateway_report(0, *(record(str(n), ended=1000.0 + n) for n in range(9))))
    await storage.save(ledger.state, ledger.changes)
    state = await storage.take_over()
    assert list(state.entries) == ["6", "7", "8"] and state.totals == ledger.totals
