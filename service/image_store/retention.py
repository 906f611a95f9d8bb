"""Which stored images are deleted: those whose links have expired, and the oldest of too many bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from safelight.service.image_store.names import ImageName

# Images are deleted down to this share of the limit, so that not every write has to look for more.
KEPT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One object of the store that is an image of ours."""

    name: ImageName
    written: datetime
    num_bytes: int


def surplus_images(images: Sequence[StoredImage], now: float, max_bytes: int) -> list[StoredImage]:
    """The images to delete at the Unix time `now`.

    An image goes when its link has expired. If the others take more than `max_bytes` (0: no limit), the
    oldest of them go too, whose links then end early.
    """
    expired = [image for image in images if image.name.expires <= now]
    kept = sorted(
        (image for image in images if image.name.expires > now),
        key=lambda image: (image.written, image.name.expires, image.name.token),
    )
    total = sum(image.num_bytes for image in kept)
    if not max_bytes or total <= max_bytes:
        return expired
    oldest = []
    for image in kept:
        if total <= KEPT_SHARE * max_bytes:
            break
        oldest.append(image)
        total -= image.num_bytes
    return expired + oldest
