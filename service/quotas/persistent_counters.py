"""Counters in memory that the database keeps, so that a restart forgets no quota."""

import asyncio
import logging
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.tables import key_usage
from safelight.service.quotas.counters import Counter, Counters, RequestWindow

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
LOCK = "key_usage"


@dataclass
class _Balance:
    """What is in the database of one counter, as far as this process knows, and what is not yet."""

    base: int
    pending: int = 0


class PersistentCounters:
    """Counters whose sums begin with those in the database, and are added to them every few seconds.

    Several gateways so learn each other's sums, too, that much later.

    Args:
        memory: Counters in memory.
        database: Has the table.
    """

    def __init__(self, memory: Counters, database: Database):
        self._memory = memory
        self._database = database
        self._balances: dict[Counter, _Balance] = {}
        self._lock = asyncio.Lock()

    async def add(self, counter: Counter, amount: int) -> int:
        balance = self._balances.get(counter) or await self._begin(counter)
        balance.pending += amount
        return await self._memory.add(counter, amount)

    async def hit(self, key_id: str, limit: int) -> RequestWindow:
        return await self._memory.hit(key_id, limit)

    async def close(self) -> None:
        await self._memory.close()

    async def run(self) -> None:
        """Keep what was counted, until the task is cancelled; and then once more."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self.flush()
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Add what was counted to the database, and take over what others have added."""
        pending = {counter: balance for counter, balance in self._balances.items() if balance.pending}
        if not pending:
            return
        amounts = {counter: balance.pending for counter, balance in pending.items()}
        try:
            sums = await self._keep(amounts)
        except DatabaseFailed as error:
            logger.error("the use of API keys cannot be kept: %s", error)
            return
        for counter, amount in amounts.items():
            balance = pending[counter]
            others = sums[counter] - balance.base - amount
            balance.base, balance.pending = sums[counter], balance.pending - amount
            if others:
                await self._memory.add(counter, others)

    async def _begin(self, counter: Counter) -> _Balance:
        """Begin a counter with the sum in the database; with nothing if that cannot be read."""
        async with self._lock:
            if counter in self._balances:
                return self._balances[counter]
            self._drop_old(counter)
            base = 0
            try:
                async with self._database.read() as connection:
                    query = select(key_usage.c.amount).where(
                        key_usage.c.key_id == counter.key_id,
                        key_usage.c.quota == counter.quota,
                        key_usage.c.period == counter.period,
                    )
                    base = int(await connection.scalar(query) or 0)
            except DatabaseFailed as error:
                logger.error("the use of API keys cannot be read: %s", error)
            if base:
                await self._memory.add(counter, base)
            self._balances[counter] = balance = _Balance(base)
            return balance

    def _drop_old(self, counter: Counter) -> None:
        """Forget the counters of periods before, if nothing of them is pending."""
        for other, balance in list(self._balances.items()):
            is_same = (other.key_id, other.quota) == (counter.key_id, counter.quota)
            if is_same and other.ends < counter.ends and not balance.pending:
                del self._balances[other]

    async def _keep(self, amounts: dict[Counter, int]) -> dict[Counter, int]:
        """Add amounts to the table; returns the sums."""
        dialect = sqlite if self._database.location.folder is not None else postgresql
        sums = {}
        async with self._database.write(LOCK) as connection:
            for counter, amount in amounts.items():
                row = {"key_id": counter.key_id, "quota": counter.quota, "period": counter.period}
                new = dialect.insert(key_usage).values(**row, amount=amount)
                query = new.on_conflict_do_update(
                    index_elements=list(row), set_={"amount": key_usage.c.amount + amount}
                ).returning(key_usage.c.amount)
                sums[counter] = int((await connection.execute(query)).scalar_one())
        return sums
