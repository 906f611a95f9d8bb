"""Counters of requests and quotas: in memory, in Valkey or Redis, or in memory while that does not answer."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from safelight.service.setting_types import BadSetting

logger = logging.getLogger(__name__)

NAMESPACE = "safelight"
STORE_SECONDS = 1.0  # in which a store must answer
MAX_CONNECTIONS = 32
MARGIN_SECONDS = 0.01
RETRY_SECONDS = 1.0  # after which one that did not is asked again
MISSING = "counter_store needs the extra valkey: pip install 'safelight[valkey]'"


@dataclass(frozen=True, slots=True)
class Counter:
    """One key's use of one quota in one period."""

    key_id: str
    quota: str  # its resource
    period: str
    ends: float  # Unix time of the period's end

    @property
    def name(self) -> str:
        return f"{NAMESPACE}/{self.key_id}/{self.quota}/{self.period}"


@dataclass(frozen=True, slots=True)
class RequestWindow:
    """A key's requests in the last minute, after one more."""

    is_admitted: bool
    limit: int
    remaining: int
    seconds: float  # until there is room for one more


class Counters(Protocol):
    """Counts; every call is one atomic step, whoever else counts."""

    async def add(self, counter: Counter, amount: int) -> int:
        """Add `amount`, which may be negative; returns the sum."""
        ...

    async def hit(self, key_id: str, limit: int) -> RequestWindow:
        """Count a request of a key that may send `limit` a minute, unless that is reached."""
        ...

    async def close(self) -> None:
        """End connections."""
        ...


class StoredCounters:
    """Counters in a storage of the library `limits`; `pool` has the connections to it, if there are any."""

    def __init__(self, storage: Storage, pool: Any = None):
        self._storage = storage
        self._pool = pool
        self._window = SlidingWindowCounterRateLimiter(storage)

    async def add(self, counter: Counter, amount: int) -> int:
        seconds = max(1, math.ceil(counter.ends - time.time()))
        # an hour more, so that a request that ends after the period is still settled in it
        return int(await self._storage.incr(counter.name, seconds + 3600, amount=amount))

    async def hit(self, key_id: str, limit: int) -> RequestWindow:
        item = RateLimitItemPerMinute(max(limit, 1), namespace=NAMESPACE)
        is_admitted = limit > 0 and await self._window.hit(item, key_id)
        window = await self._window.get_window_stats(item, key_id)
        # at that very moment it does not suffice
        seconds = window.reset_time - time.time() + MARGIN_SECONDS if limit else 60.0
        remaining = window.remaining if limit else 0
        return RequestWindow(is_admitted, limit, max(0, remaining), min(max(0.0, seconds), 60.0))

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()


class SharedCounters:
    """Counters that gateways share; while these cannot be reached, each counts in its memory.

    Args:
        shared: Those in the store.
        memory: Those in memory.
    """

    def __init__(self, shared: Counters, memory: Counters):
        self._shared = shared
        self._memory = memory
        self._failed_at = -math.inf

    async def add(self, counter: Counter, amount: int) -> int:
        if self._is_reachable():
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    return await self._shared.add(counter, amount)
            except Exception as error:  # of the client library
                self._note(error)
        return await self._memory.add(counter, amount)

    async def hit(self, key_id: str, limit: int) -> RequestWindow:
        if self._is_reachable():
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    return await self._shared.hit(key_id, limit)
            except Exception as error:
                self._note(error)
        return await self._memory.hit(key_id, limit)

    async def close(self) -> None:
        await self._shared.close()

    def _is_reachable(self) -> bool:
        return time.monotonic() >= self._failed_at + RETRY_SECONDS

    def _note(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        logger.error("the counter store does not answer; counting in memory: %s", type(error).__name__)


def memory_counters() -> Counters:
    return StoredCounters(MemoryStorage())


def shared_counters(url: str) -> Counters:
    """Counters at the URL of Valkey or Redis. Raises `BadSetting` without the client library."""
    try:
        from redis.asyncio import BlockingConnectionPool
    except ImportError:
        raise BadSetting(MISSING) from None
    scheme = "rediss" if urlsplit(url).scheme in ("valkeys", "rediss") else "redis"
    address = f"{scheme}://{url.partition('://')[2]}"
    pool = BlockingConnectionPool.from_url(
        address,
        max_connections=MAX_CONNECTIONS,
        timeout=STORE_SECONDS,
        socket_connect_timeout=STORE_SECONDS,
        socket_timeout=STORE_SECONDS,
    )
    options: dict[str, Any] = {"connection_pool": pool}
    storage = RedisStorage(f"async+{address}", implementation="redispy", **options)
    return SharedCounters(StoredCounters(storage, pool), memory_counters())
