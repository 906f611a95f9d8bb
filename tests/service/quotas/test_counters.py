"""Counters in memory, in Valkey or Redis, in memory while that is away, and kept in the database."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.quotas import counters as counters_module
from safelight.service.quotas.counters import (
    Counter,
    Counters,
    RequestWindow,
    SharedCounters,
    memory_counters,
    shared_counters,
)
from safelight.service.quotas.persistent_counters import PersistentCounters
from tests.live import free_port
from tests.servers import valkey_server

COUNTER = Counter("key_1", "images", "2026-11-30", time.time() + 1000)


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", "valkey"])
async def counters(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Counters]:
    monkeypatch.setattr(counters_module, "STORE_SECONDS", 60.0)  # this machine may be busy
    is_memory = request.param == "memory"
    counters = memory_counters() if is_memory else shared_counters(request.getfixturevalue("valkey"))
    yield counters
    await counters.close()


def counter_of(request: pytest.FixtureRequest) -> Counter:
    """A counter of this test's own: a server is shared."""
    return replace(COUNTER, key_id=request.node.name)


async def test_sums_rise_and_fall(counters: Counters, request: pytest.FixtureRequest) -> None:
    counter = counter_of(request)
    sums = [await counters.add(counter, amount) for amount in (3, 4, -4, -3, 0, 5)]
    assert sums == [3, 7, 3, 0, 0, 5]
    assert await counters.add(replace(counter, period="2026-12-01"), 1) == 1
    assert await counters.add(replace(counter, key_id=f"{counter.key_id}2"), 1) == 1


async def test_no_step_is_lost_among_many(counters: Counters, request: pytest.FixtureRequest) -> None:
    counter = counter_of(request)
    sums = await asyncio.gather(*(counters.add(counter, 1) for _ in range(200)))
    assert sorted(sums) == list(range(1, 201))


async def test_a_minute_has_so_many_requests(counters: Counters, request: pytest.FixtureRequest) -> None:
    windows = [await counters.hit(request.node.name, 3) for _ in range(5)]
    assert [window.is_admitted for window in windows] == [True, True, True, False, False]
    assert [window.remaining for window in windows] == [2, 1, 0, 0, 0]
    assert all(0 < window.seconds <= 60 for window in windows[2:])
    assert (await counters.hit(f"{request.node.name} 2", 3)).is_admitted


async def test_a_limit_of_none_admits_none(counters: Counters, request: pytest.FixtureRequest) -> None:
    assert await counters.hit(request.node.name, 0) == RequestWindow(False, 0, 0, 60.0)


async def test_a_request_after_the_time_that_was_told_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the limit at once, then whenever there is said to be room: for three minutes."""
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    counters = memory_counters()
    admitted = [now for _ in range(4) if (await counters.hit("a", 4)).is_admitted]
    while now < 1_000_180.0:
        window = await counters.hit("a", 4)
        assert not window.is_admitted
        now += max(1, math.ceil(window.seconds))
        assert (await counters.hit("a", 4)).is_admitted
        admitted.append(now)
    assert len(admitted) > 8


async def test_gateways_share_a_store(valkey: str, request: pytest.FixtureRequest) -> None:
    first, second, counter = shared_counters(valkey), shared_counters(valkey), counter_of(request)
    for total, counters in enumerate((first, second, first), start=1):
        assert await counters.add(counter, 1) == total
        assert (await counters.hit(counter.key_id, 2)).is_admitted == (total < 3)
    await first.close()
    await second.close()


async def test_while_the_store_is_away_a_gateway_counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters_module, "RETRY_SECONDS", 0.0)
    port = free_port()
    counters = shared_counters(f"valkey://127.0.0.1:{port}/0")
    assert await counters.add(COUNTER, 2) == 2
    assert (await counters.hit("a", 1)).is_admitted
    assert not (await counters.hit("a", 1)).is_admitted
    with valkey_server(port):
        assert await counters.add(COUNTER, 5) == 5  # the store's own
        assert (await counters.hit("a", 1)).is_admitted
    assert await counters.add(COUNTER, 1) == 3
    await counters.close()


async def test_a_store_that_is_away_is_not_asked_by_every_request() -> None:
    num_calls = 0

    class Away:
        async def add(self, counter: Counter, amount: int) -> int:
            nonlocal num_calls
            num_calls += 1
            raise ConnectionError

        hit = add

    counters = SharedCounters(Away(), memory_counters())  # type: ignore[arg-type]
    assert [await counters.add(COUNTER, 1) for _ in range(100)] == list(range(1, 101))
    assert num_calls == 1


async def test_sums_survive_a_restart_and_are_those_of_all_gateways(database: Database) -> None:
    first, second = (PersistentCounters(memory_counters(), database) for _ in range(2))
    assert await first.add(COUNTER, 5) == 5
    assert await second.add(COUNTER, 7) == 7  # nothing is kept yet
    await first.flush()
    await second.flush()
    assert await second.add(COUNTER, 0) == 12
    await second.add(COUNTER, -2)
    await second.flush()
    await first.add(COUNTER, 1)
    await first.flush()
    assert await first.add(COUNTER, 0) == 11
    third = PersistentCounters(memory_counters(), database)
    assert await third.add(COUNTER, 1) == 12
    assert await third.add(replace(COUNTER, period="2026-12-01", ends=COUNTER.ends + 1), 1) == 1
    assert await third.add(replace(COUNTER, quota="spend"), 1) == 1


async def test_what_is_counted_while_it_is_kept_is_not_lost(database: Database) -> None:
    counters = PersistentCounters(memory_counters(), database)
    await counters.add(COUNTER, 1)

    async def count() -> None:
        for _ in range(50):
            await counters.add(COUNTER, 1)
            await asyncio.sleep(0)

    await asyncio.gather(count(), count(), *(counters.flush() for _ in range(3)))
    await counters.flush()
    assert await counters.add(COUNTER, 0) == 101
    assert await PersistentCounters(memory_counters(), database).add(COUNTER, 0) == 101


async def test_without_its_database_a_gateway_counts_and_keeps_later(database: Database) -> None:
    counters = PersistentCounters(memory_counters(), database)
    write, read = database.write, database.read

    def fail(*_: object) -> object:
        raise DatabaseFailed("away")

    database.write = database.read = fail  # type: ignore[method-assign, assignment]
    assert await counters.add(COUNTER, 3) == 3
    await counters.flush()
    database.write, database.read = write, read  # type: ignore[method-assign]
    await counters.flush()
    assert await PersistentCounters(memory_counters(), database).add(COUNTER, 0) == 3


async def test_counters_of_periods_before_are_forgotten(database: Database) -> None:
    counters = PersistentCounters(memory_counters(), database)
    for day in range(5):
        await counters.add(replace(COUNTER, period=f"day {day}", ends=COUNTER.ends + day), 1)
        await counters.flush()
    assert len(counters._balances) == 1
