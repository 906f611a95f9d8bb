"""Where a gateway has its keys from: copies of the keys in a file and in the database, kept fresh by use.

A copy is in memory, whole. So a request costs no database work, whatever key it sends.
"""

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safelight.service.errors import KeysUnavailable
from safelight.service.keys.api_key import ApiKey, StoredSecret
from safelight.service.keys.key_file import BadKeyFile, read_key_file

logger = logging.getLogger(__name__)

MISS_SECONDS = 1.0  # between two looks at a source for keys that are not in its copy, such as new ones
RETRY_SECONDS = 1.0  # after a source that failed is asked again


class KeyCopy:
    """The keys of one source by the prefixes of their secrets."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}
        self._ids: dict[str, list[str]] = {}  # by prefix

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, keys: Iterable[ApiKey]) -> None:
        """Add keys, in place of those with the same ids."""
        for key in keys:
            if previous := self._keys.pop(key.id, None):
                self._forget(previous)
            self._keys[key.id] = key
            for secret in key.secrets:
                self._ids.setdefault(secret.prefix, []).append(key.id)

    def get(self, key_id: str) -> ApiKey | None:
        """The key with this id."""
        return self._keys.get(key_id)

    def clear(self) -> None:
        self._keys.clear()
        self._ids.clear()

    def secrets(self, prefix: str) -> Iterator[tuple[ApiKey, StoredSecret]]:
        """The secrets with this prefix, each with its key."""
        for key_id in dict.fromkeys(self._ids.get(prefix, ())):
            key = self._keys[key_id]
            yield from ((key, secret) for secret in key.secrets if secret.prefix == prefix)

    def _forget(self, key: ApiKey) -> None:
        for secret in key.secrets:
            ids = self._ids[secret.prefix]
            ids.remove(key.id)
            if not ids:
                del self._ids[secret.prefix]


class KeySource(ABC):
    """A source of keys with its copy.

    Args:
        seconds: After which the copy is compared with the source again, before it is used.
        clock: Returns seconds that only rise.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.copy = KeyCopy()
        self._seconds = seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._fresh_at: float | None = None  # when the copy was last equal to the source
        self._failed_at = -math.inf

    async def refresh(self, seconds: float | None = None) -> bool:
        """Make the copy equal to the source if that was `seconds` ago; returns whether it did.

        By default these are the source's own seconds. Callers at the same time wait for one of them. Raises
        `KeysUnavailable` if the source fails and its copy is too old to be used.
        """
        limit = self._seconds if seconds is None else seconds
        if not self._is_older(limit):
            return False
        async with self._lock:
            if not self._is_older(limit):
                return False  # another has done it meanwhile
            if self._clock() >= self._failed_at + RETRY_SECONDS:
                try:
                    await self._load()
                    self._fresh_at = self._clock()
                    return True
                except Exception as error:  # of the database's drivers, too
                    self._failed_at = self._clock()
                    logger.error("keys cannot be read: %s: %s", type(error).__name__, error)
            self._check_age()
            return False

    @property
    def is_failing(self) -> bool:
        """Whether the source could not be read when it was asked last."""
        return self._failed_at > (-math.inf if self._fresh_at is None else self._fresh_at)

    @abstractmethod
    async def _load(self) -> None:
        """Make the copy equal to the source."""

    def _check_age(self) -> None:
        """Raise `KeysUnavailable` if there is no copy, or it is too old."""
        if self._fresh_at is None:
            raise KeysUnavailable()

    def _is_older(self, seconds: float) -> bool:
        return self._fresh_at is None or self._clock() >= self._fresh_at + seconds


class FileSource(KeySource):
    """The keys of a file, which is read again when it has changed; if it cannot be read, nothing changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        super().__init__(MISS_SECONDS, clock)
        self._path = path
        self._mark: tuple[int, ...] = ()

    async def _load(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise BadKeyFile(f"{self._path} cannot be read: {error.strerror}") from None
        mark = (status.st_mtime_ns, status.st_ino, status.st_size)
        if mark != self._mark:
            keys = await asyncio.to_thread(read_key_file, self._path)
            self.copy.clear()
            self.copy.put(keys)
            self._mark = mark
