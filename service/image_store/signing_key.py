"""The key that signs links: made by the first gateway that needs it, and kept beside the images."""

import contextlib
import os
import secrets
from pathlib import Path

from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import ObjectStore

KEY_NAME = "link-key"
KEY_BYTES = 32
KEY_MODE = 0o600


class BadKey(Exception):
    """The kept key cannot be used; the message says why."""


def folder_key(folder: Path) -> bytes:
    """The key in `folder`, which is made if it is missing. Raises `OSError` or `BadKey`.

    The file appears whole or not at all, and the first one stays: gateways that start at the same time all
    read the key of the one that linked its file first.
    """
    path = folder / KEY_NAME
    if not path.exists():
        partial = folder / f".{KEY_NAME}-{secrets.token_hex(8)}.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE), "wb") as file:
            try:
                file.write(_new_key())
                file.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(partial, path)
            finally:
                partial.unlink()
    return _parse(path.read_bytes())


async def bucket_key(bucket: ObjectStore) -> bytes:
    """The key in `bucket`, which is made if it is missing: the first one that is written stays.

    Whoever can read it can read the images as well.
    """
    try:
        return _parse(await _read(bucket))
    except (FileNotFoundError, NotFoundError):
        pass
    with contextlib.suppress(AlreadyExistsError):
        await bucket.put_async(KEY_NAME, _new_key(), mode="create")
    return _parse(await _read(bucket))


async def _read(bucket: ObjectStore) -> bytes:
    answer = await bucket.get_async(KEY_NAME)
    return bytes(await answer.bytes_async())


def _new_key() -> bytes:
    return secrets.token_hex(KEY_BYTES).encode()


def _parse(text: bytes) -> bytes:
    """The key of a file's content; too short a key could be guessed."""
    key = text.strip()
    if len(key) < KEY_BYTES:
        raise BadKey(f"{KEY_NAME} is shorter than {KEY_BYTES} characters")
    return key
