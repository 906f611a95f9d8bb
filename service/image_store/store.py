"""Stores images and finds them again: all images of a request or none, each until its link expires."""

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore

from safelight.service.errors import ImageNotStored, StoreFailed
from safelight.service.image_store.links import LinkSigner
from safelight.service.image_store.locations import folder_of, is_bucket
from safelight.service.image_store.names import ImageName
from safelight.service.image_store.object_stores import OpenStore, open_store, store_errors
from safelight.service.image_store.retention import KEPT_SHARE, StoredImage, surplus_images

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0  # in which the images of a request must be stored
LOAD_SECONDS = 30.0
REOPEN_SECONDS = 5.0  # between two attempts to open a store that cannot be opened
SWEEP_SECONDS = 60.0  # between two searches for images to delete
DELETED_AT_ONCE = 1000
MAX_IMAGE_BYTES = 256 << 20  # no image of ours is so large
# obstore writes a file under such a name first, which a process that is killed leaves behind.
PARTIAL_FILE = re.compile(r"(.+)#[0-9]+")
PARTIAL_SECONDS = 3600.0


class ImageStore:
    """Images in a folder or a bucket.

    The store is opened when it is first used, so that a service whose callers ask for no links makes none.

    Args:
        location: Path of a folder, or URL of a folder or a bucket; empty for a folder of this user.
        key: Signs the links; if it is empty, a key is made and kept in the store.
        link_seconds: How long a link holds.
        max_bytes: Most bytes of images; beyond it the oldest are deleted. 0: no limit.
        clock: Returns the current Unix time.
    """

    def __init__(
        self,
        location: str = "",
        key: str = "",
        link_seconds: float = 86_400.0,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ):
        self._location = location
        self._key = key
        self._link_seconds = link_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._store: OpenStore | None = None
        self._opening = asyncio.Lock()
        self._failure: StoreFailed | None = None  # of the latest attempt to open it
        self._failure_time = -math.inf
        self._num_bytes = 0  # stored, as far as this gateway knows
        self._is_full = asyncio.Event()

    async def signer(self) -> LinkSigner:
        """Signs and checks links. Raises `StoreFailed` if the store cannot be opened."""
        return LinkSigner((await self._open()).key)

    async def save(self, images: Sequence[bytes], format: str) -> list[ImageName]:
        """Store the files of one request, which are of one format.

        Raises `StoreFailed`; then none of them is in the store.
        """
        self._check_size(images)
        expires = math.ceil(self._clock() + self._link_seconds)
        names = [ImageName.make(image, format, expires) for image in images]
        await self._save(names, images)
        return names

    async def save_named(self, names: Sequence[ImageName], images: Sequence[bytes]) -> None:
        """Store images under names that are made from them, so that a second time changes nothing.

        Raises `StoreFailed`; then some of them may be in the store until their names expire, because another
        gateway may have stored the same.
        """
        self._check_size(images)
        await self._save(names, images, is_shared=True)

    def _check_size(self, images: Sequence[bytes]) -> None:
        if self._max_bytes and sum(map(len, images)) > KEPT_SHARE * self._max_bytes:
            raise StoreFailed("The images are larger than the image store may be (image_store_bytes).")

    async def _save(
        self, names: Sequence[ImageName], images: Sequence[bytes], is_shared: bool = False
    ) -> None:
        """Store images, after a sweep if there is no room."""
        objects = (await self._open()).objects
        try:
            await self._put_all(objects, names, images, is_shared)
        except StoreFailed:
            if not await self._sweep_quietly():
                raise
            await self._put_all(objects, names, images, is_shared)  # there is more room now
        self._num_bytes += sum(map(len, images))
        if self._max_bytes and self._num_bytes > self._max_bytes:
            self._is_full.set()

    async def load(self, name: ImageName) -> bytes:
        """The bytes of a stored image. Raises `ImageNotStored` or `StoreFailed`."""
        objects = (await self._open()).objects
        with store_errors("The image store could not be read"):
            try:
                async with asyncio.timeout(LOAD_SECONDS):
                    answer = await objects.get_async(str(name))
                    is_too_large = answer.meta["size"] > MAX_IMAGE_BYTES
                    data = b"" if is_too_large else bytes(await answer.bytes_async())
            except (FileNotFoundError, NotFoundError):
                raise ImageNotStored() from None
        if is_too_large or not name.is_of(data):
            logger.warning("the stored image %s is not the one that was written", name)
            raise ImageNotStored("The stored image was changed by another program and is not served.")
        return data

    async def sweep(self) -> int:
        """Delete the images that retention leaves out, and return how many. Raises `StoreFailed`."""
        store = await self._open()
        with store_errors("The image store could not be read"):
            listing = await store.objects.list_with_delimiter_async()
            images = [
                StoredImage(name, entry["last_modified"], entry["size"])
                for entry in listing["objects"]
                if (name := ImageName.parse(entry["path"].rpartition("/")[2])) is not None
            ]
            surplus = surplus_images(images, self._clock(), self._max_bytes)
            await _delete(store.objects, [image.name for image in surplus])
            if store.folder is not None:
                await asyncio.to_thread(_remove_partial_files, store.folder, self._clock())
        self._num_bytes = sum(image.num_bytes for image in images) - sum(i.num_bytes for i in surplus)
        return len(surplus)

    async def run(self) -> None:
        """Sweep regularly, and when the store is full, until the task is cancelled."""
        while True:
            if self.is_in_use():
                await self._sweep_quietly()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_full.wait(), SWEEP_SECONDS)
            self._is_full.clear()

    def is_in_use(self) -> bool:
        """Whether there is a store, made by this gateway or before."""
        if self._store is not None or is_bucket(self._location):
            return True
        with contextlib.suppress(RuntimeError, OSError):
            return folder_of(self._location).is_dir()
        return False

    async def _open(self) -> OpenStore:
        async with self._opening:
            if self._store is None:
                # Requests that waited for an attempt share its failure, and do not each make another.
                if self._failure is not None and time.monotonic() < self._failure_time + REOPEN_SECONDS:
                    raise StoreFailed(str(self._failure)) from self._failure
                try:
                    self._store = await self._open_now()
                except StoreFailed as failure:
                    self._failure, self._failure_time = failure, time.monotonic()
                    raise
            return self._store

    async def _open_now(self) -> OpenStore:
        with store_errors("The image store cannot be opened"):
            return await asyncio.wait_for(open_store(self._location, self._key), LOAD_SECONDS)

    async def _put_all(
        self, objects: ObjectStore, names: Sequence[ImageName], images: Sequence[bytes], is_shared: bool
    ) -> None:
        """Write all images or, if one cannot be written or the caller has gone, none, unless `is_shared`."""
        try:
            with store_errors("The images were drawn and could not be stored"):
                async with asyncio.timeout(SAVE_SECONDS):
                    ends = await asyncio.gather(
                        *(self._put(objects, *pair) for pair in zip(names, images, strict=True)),
                        return_exceptions=True,
                    )
                for end in ends:
                    if isinstance(end, BaseException):
                        raise end
        except BaseException:
            if not is_shared:
                with contextlib.suppress(OSError, BaseError):
                    await _delete(objects, names)
            raise

    async def _put(self, objects: ObjectStore, name: ImageName, image: bytes) -> None:
        attributes = {"Content-Type": name.media_type} if is_bucket(self._location) else None
        await objects.put_async(str(name), image, attributes=attributes, use_multipart=False)

    async def _sweep_quietly(self) -> int:
        try:
            return await self.sweep()
        except StoreFailed as error:
            logger.warning("old images were not deleted: %s (%s)", error, error.__cause__)
            return 0


async def _delete(objects: ObjectStore, names: Sequence[ImageName]) -> None:
    """Delete the images, some of which may be gone: another gateway may delete them too."""
    for start in range(0, len(names), DELETED_AT_ONCE):
        paths = [str(name) for name in names[start : start + DELETED_AT_ONCE]]
        try:
            await objects.delete_async(paths)
        except (FileNotFoundError, NotFoundError):
            for path in paths:
                with contextlib.suppress(FileNotFoundError, NotFoundError):
                    await objects.delete_async(path)


def _remove_partial_files(folder: Path, now: float) -> None:
    for path in folder.iterdir():
        match = PARTIAL_FILE.fullmatch(path.name)
        if match and ImageName.parse(match.group(1)):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - PARTIAL_SECONDS:
                    path.unlink()
