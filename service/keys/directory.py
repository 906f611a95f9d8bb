"""Finds the key of a request's secret, and says why it does not hold."""

import time
from collections.abc import Callable, Sequence

from safelight.service.errors import InvalidKey, KeysUnavailable
from safelight.service.keys.api_key import ApiKey, StoredSecret
from safelight.service.keys.database_source import DatabaseSource
from safelight.service.keys.key_sources import MISS_SECONDS, FileSource, KeySource
from safelight.service.keys.secrets import find_digest, hash_secret, is_secret, prefix_of


class KeyDirectory:
    """The keys of a file and of the database; each may be missing.

    Args:
        file: The file's.
        database: The database's.
        clock: Returns the current Unix time.
    """

    def __init__(
        self,
        file: FileSource | None = None,
        database: DatabaseSource | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.file = file
        self.database = database
        self._clock = clock

    @property
    def sources(self) -> Sequence[KeySource]:
        return [source for source in (self.file, self.database) if source is not None]

    async def find(self, secret: str) -> ApiKey:
        """The key that `secret` opens.

        Raises:
            InvalidKey: There is none, or it does not hold any more.
            KeysUnavailable: A source cannot be read.
        """
        if not is_secret(secret):
            raise InvalidKey("The API key has not the form of one: sk- and 43 characters.")
        entry = await self._look_up(secret)
        if entry is None:
            raise InvalidKey("There is no such API key.")
        key, stored = entry
        if reason := key.why_not(stored, self._clock()):
            raise InvalidKey(f"The API key {reason}.")
        if self.database is not None:
            self.database.note_use(key)
        return key

    async def get(self, key_id: str) -> ApiKey:
        """The key with this id, whose caller has shown its secret before. Raises `InvalidKey`."""
        for source in self.sources:
            await source.refresh()
        for source in self.sources:
            if (key := source.copy.get(key_id)) is not None:
                if reason := key.why_not(None, self._clock()):
                    raise InvalidKey(f"The API key {reason}.")
                return key
        raise InvalidKey("There is no such API key.")

    async def _look_up(self, secret: str) -> tuple[ApiKey, StoredSecret] | None:
        prefix, digest = prefix_of(secret), hash_secret(secret)
        for source in self.sources:
            await source.refresh()
        if entry := self._match(prefix, digest):
            return entry
        # It may be new. At most once in `MISS_SECONDS` that is looked up, whatever is sent.
        if any([await source.refresh(MISS_SECONDS) for source in self.sources]):
            return self._match(prefix, digest)
        if any(source.is_failing for source in self.sources):
            raise KeysUnavailable()  # it may be new
        return None

    def _match(self, prefix: str, digest: bytes) -> tuple[ApiKey, StoredSecret] | None:
        entries = [entry for source in self.sources for entry in source.copy.secrets(prefix)]
        index = find_digest(digest, [stored.digest for _, stored in entries])
        return None if index is None else entries[index]
