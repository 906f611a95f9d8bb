"""Opens a folder or bucket through obstore, and says in a few words why one of its calls has failed."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, from_url

from safelight.service.errors import StoreFailed
from safelight.service.image_store.locations import FOLDER_MODE, folder_of, is_bucket
from safelight.service.image_store.signing_key import BadKey, bucket_key, folder_key

# obstore's defaults, ten attempts within three minutes, are long for a waiting caller. Options of its HTTP
# client are left alone: any that is set here would replace all that the environment sets.
BUCKET_OPTIONS: dict[str, Any] = {
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
}
OS_ERROR = re.compile(r"([^:\n]+) \(os error \d+\)")


@dataclass(frozen=True)
class OpenStore:
    """An object store that is ready to be used, and the key that is kept in it.

    Attributes:
        objects: The folder or bucket.
        folder: Where the objects are files of this machine; None for a bucket.
        key: Signs the links.
    """

    objects: ObjectStore
    folder: Path | None
    key: bytes


async def open_store(location: str, key: str) -> OpenStore:
    """The store at `location`; a folder that is missing is made.

    Links are signed with `key` or, if it is empty, with the key that is kept in the store. Raises the errors
    that `store_errors` translates.
    """
    if is_bucket(location):
        bucket = from_url(location, **BUCKET_OPTIONS)
        return OpenStore(bucket, None, key.encode() or await bucket_key(bucket))
    folder = folder_of(location)
    return await asyncio.to_thread(_open_folder, folder, key)


def _open_folder(folder: Path, key: str) -> OpenStore:
    folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
    return OpenStore(LocalStore(folder), folder, key.encode() or folder_key(folder))


@contextmanager
def store_errors(sentence: str) -> Iterator[None]:
    """Turn what the store raises into `StoreFailed`, whose message is `sentence` and a short reason.

    The message goes to the caller: it names no path and no bucket. The log has the error itself.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, BaseError, BadKey) as error:
        raise StoreFailed(f"{sentence}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, (PermissionError, PermissionDeniedError, UnauthenticatedError)):
        return "access is denied"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    match = OS_ERROR.search(str(error))
    return match.group(1).strip() if match else "the log of the service says why"
