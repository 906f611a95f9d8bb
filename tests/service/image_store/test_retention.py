"""Which images are deleted, by age and by bytes."""

from dataclasses import replace
from datetime import UTC, datetime

from safelight.service.image_store.names import ImageName
from safelight.service.image_store.retention import StoredImage, surplus_images

NOW = 1000.0


def image(written: int, expires: int = 5000, num_bytes: int = 100) -> StoredImage:
    name = ImageName.make(bytes([written]), "png", expires)
    return StoredImage(name, datetime.fromtimestamp(written, UTC), num_bytes)


def test_an_image_goes_when_its_link_has_expired_and_not_before() -> None:
    images = [image(1, expires=999), image(2, expires=1000), image(3, expires=1001)]
    assert surplus_images(images, NOW, 0) == images[:2]


def test_without_a_limit_any_number_is_kept() -> None:
    assert surplus_images([image(k, num_bytes=1 << 40) for k in range(9)], NOW, 0) == []


def test_up_to_the_limit_everything_is_kept() -> None:
    assert surplus_images([image(k) for k in range(10)], NOW, 1000) == []


def test_beyond_the_limit_the_oldest_go_until_a_tenth_is_free() -> None:
    images = [image(k) for k in (3, 1, 2, *range(4, 12))]  # 1,100 bytes
    assert surplus_images(images, NOW, 1000) == [images[1], images[2]]


def test_the_oldest_are_those_written_first_whatever_their_links_say() -> None:
    """An operator may have shortened the links since."""
    old, new = image(1, expires=9000), image(2, expires=2000)
    assert surplus_images([new, old], NOW, 150) == [old]


def test_expired_images_do_not_count_against_the_limit() -> None:
    expired, kept = image(1, expires=999, num_bytes=10_000), image(2, num_bytes=900)
    assert surplus_images([expired, kept], NOW, 1000) == [expired]


def test_every_gateway_chooses_the_same_of_images_written_at_once() -> None:
    images = [replace(image(1), name=ImageName(5000, f"{k:016x}", "0" * 32, "png")) for k in range(4)]
    chosen = surplus_images(images, NOW, 350)
    assert chosen == surplus_images(images[::-1], NOW, 350) == images[:1]
