"""API keys and their limits for one gateway: the database or the file of keys, and the counters."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from safelight.pipeline.params import GenerationParams
from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import find_database
from safelight.service.errors import ForbiddenModel
from safelight.service.keys.api_key import ApiKey
from safelight.service.keys.database_source import DatabaseSource
from safelight.service.keys.directory import KeyDirectory
from safelight.service.keys.key_sources import FileSource
from safelight.service.messages import ImageUsage
from safelight.service.quotas.counters import Counters, memory_counters, shared_counters
from safelight.service.quotas.keeper import LimitStatus, QuotaKeeper, Reservation, use_of
from safelight.service.quotas.persistent_counters import PersistentCounters
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.settings import Settings


class KeyAccess:
    """Finds keys, and holds requests to their limits."""

    def __init__(self, settings: Settings):
        self.database: Database | None = None
        self.source: DatabaseSource | None = None
        if settings.uses_database:
            self.database = Database(find_database(settings.database.get_secret_value()))
            seconds, outage = settings.key_refresh_seconds, settings.key_outage_seconds
            self.source = DatabaseSource(self.database, seconds, outage)
        file = FileSource(Path(settings.api_keys_file)) if settings.api_keys_file else None
        self._directory = KeyDirectory(file, self.source)
        self._persistent: PersistentCounters | None = None
        self._counters = self._make_counters(settings.counter_store.get_secret_value())
        self._quotas = QuotaKeeper(self._counters, settings.price_per_device_hour)

    def _make_counters(self, url: str) -> Counters:
        if url:
            return shared_counters(url)
        if self.database is None:
            return memory_counters()
        self._persistent = PersistentCounters(memory_counters(), self.database)
        return self._persistent

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block, what is counted is kept in the database."""
        tasks = [] if self._persistent is None else [asyncio.ensure_future(self._persistent.run())]
        try:
            yield
        finally:
            await cancel_and_wait(*tasks)
            await self._counters.close()
            if self.source is not None:
                with suppress(DatabaseFailed):
                    await self.source.keep_uses()
            if self.database is not None:
                await self.database.close()

    async def find(self, secret: str) -> ApiKey:
        """The key that `secret` opens. Raises `InvalidKey` or `KeysUnavailable`."""
        return await self._directory.find(secret)

    async def get(self, key_id: str) -> ApiKey:
        """The key with this id, of a job. Raises `InvalidKey` if it does not hold any more."""
        return await self._directory.get(key_id)

    async def count_request(self, key: ApiKey, statuses: list[LimitStatus]) -> None:
        """Count one request; `statuses` gets the limit. Raises `LimitReached`."""
        await self._quotas.count_request(key, statuses)

    async def reserve(
        self, key: ApiKey, model: str, images: Sequence[GenerationParams], statuses: list[LimitStatus]
    ) -> Reservation:
        """Reserve what drawing images will use.

        Raises `ForbiddenModel` or `LimitReached`, and then nothing is reserved.
        """
        if not key.may_use(model):
            allowed = ", ".join(key.spec.models)
            raise ForbiddenModel(f"model: this API key may not use {model!r}; allowed: {allowed}.", "model")
        return await self._quotas.reserve(key, model, images, statuses)

    async def settle(
        self,
        reservation: Reservation,
        usages: Sequence[ImageUsage],
        seconds: float,
        has_ended_early: bool,
    ) -> None:
        """Count what a request has used in place of what was reserved; see `use_of`."""
        use = use_of(reservation.use, usages, seconds, has_ended_early)
        await self._quotas.settle(reservation, use)

    def observe(self, model: str, images: Sequence[GenerationParams], usages: Sequence[ImageUsage]) -> None:
        """Learn from images that `model` drew what others will use."""
        for params, usage in zip(images, usages, strict=True):
            self._quotas.forecast.observe(model, params, usage)
