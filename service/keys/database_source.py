"""The keys of the database as a source: of its changes, and when keys were used."""

import time
from collections.abc import Callable
from contextlib import suppress

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.errors import KeysUnavailable
from safelight.service.keys.api_key import ApiKey
from safelight.service.keys.database_keys import USED_SECONDS, DatabaseKeys
from safelight.service.keys.key_sources import KeySource


class DatabaseSource(KeySource):
    """The keys of the database.

    Args:
        database: Whose tables may not be there yet.
        seconds: After which a change reaches this copy.
        outage_seconds: For which the copy is used while the database fails.
        clock: Returns seconds that only rise.
    """

    def __init__(
        self,
        database: Database,
        seconds: float,
        outage_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(seconds, clock)
        self.keys = DatabaseKeys(database)
        self._outage_seconds = outage_seconds
        self._revision = 0
        self._last_uses: dict[str, float] = {}  # when keys were used, by id
        self._new_uses: dict[str, float] = {}  # those of them that are to be written

    def note_use(self, key: ApiKey) -> None:
        """Remember that a key was used, for the next time that the database is asked."""
        now = time.time()
        if now > max(key.last_used or 0.0, self._last_uses.get(key.id, 0.0)) + USED_SECONDS:
            self._new_uses[key.id] = self._last_uses[key.id] = now

    async def keep_uses(self) -> None:
        """Write when keys were used. Raises `DatabaseFailed`."""
        if self._new_uses:
            uses, self._new_uses = self._new_uses, {}
            await self.keys.note_use(uses)

    async def _load(self) -> None:
        keys, revision = await self.keys.changed_since(self._revision)
        if revision < self._revision:  # of another database, or of one from a backup
            keys, revision = await self.keys.changed_since(0)
            self.copy.clear()
        self.copy.put(keys)
        self._revision = revision
        with suppress(DatabaseFailed):  # keys may be used, although it cannot be written when
            await self.keep_uses()

    def _check_age(self) -> None:
        if self._is_older(self._seconds + self._outage_seconds):
            raise KeysUnavailable()
