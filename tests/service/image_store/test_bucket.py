"""Images in a bucket, against a server of S3."""

from collections.abc import Iterator

import httpx2
import pytest
from obstore.store import ObjectStore

from safelight.service.errors import ImageNotStored, StoreFailed
from safelight.service.image_store import object_stores, signing_key
from safelight.service.image_store.names import ImageName
from safelight.service.image_store.signing_key import KEY_NAME, bucket_key
from safelight.service.image_store.store import ImageStore
from tests.clock import ManualClock
from tests.service.image_store.s3_server import BUCKET, bucket_store, s3_server

HOUR = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str) -> str:
    """The URL of an empty bucket's folder."""
    httpx2.post(f"{server}/moto-api/reset").raise_for_status()
    httpx2.put(f"{server}/{BUCKET}").raise_for_status()
    return f"s3://{BUCKET}/some/prefix"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.0)


def make_store(bucket: str, clock: ManualClock, max_bytes: int = 0) -> ImageStore:
    return ImageStore(bucket, link_seconds=HOUR, max_bytes=max_bytes, clock=clock.time)


def objects() -> list[str]:
    """The keys in the bucket, without the prefix and the signing key."""
    paths = [entry["path"] for chunk in bucket_store().list() for entry in chunk]
    assert all(path.startswith("some/prefix/") for path in paths)
    names = [path.removeprefix("some/prefix/") for path in paths]
    return sorted(name for name in names if name != KEY_NAME)


async def test_two_gateways_share_images_and_key(bucket: str, clock: ManualClock) -> None:
    first, second = make_store(bucket, clock), make_store(bucket, clock)
    names = await first.save([b"one", b"two"], "png")
    assert [await second.load(name) for name in names] == [b"one", b"two"]
    assert (await first.signer()).query("name", 5) == (await second.signer()).query("name", 5)
    assert objects() == sorted(map(str, names))


async def test_the_bucket_knows_the_media_type(bucket: str, clock: ManualClock, server: str) -> None:
    (name,) = await make_store(bucket, clock).save([b"one"], "webp")
    attributes = (await bucket_store().get_async(f"some/prefix/{name}")).attributes
    assert attributes["Content-Type"] == "image/webp"


async def test_the_first_key_stays(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway has found no key before the first one wrote it."""
    key, read, reads = await bucket_key(bucket_store()), signing_key._read, [0]

    async def read_too_early(bucket: ObjectStore) -> bytes:
        reads[0] += 1
        if reads[0] == 1:
            raise FileNotFoundError
        return await read(bucket)

    monkeypatch.setattr(signing_key, "_read", read_too_early)
    assert await bucket_key(bucket_store()) == key


async def test_images_are_swept_when_their_links_have_expired(bucket: str, clock: ManualClock) -> None:
    store = make_store(bucket, clock)
    await store.save([b"one", b"two"], "png")
    clock.advance(HOUR / 2)
    (kept,) = await store.save([b"three"], "png")
    await bucket_store().put_async("some/prefix/holiday.png", b"x")
    clock.advance(HOUR / 2)
    assert await store.sweep() == 2
    assert objects() == sorted([str(kept), "holiday.png"])
    assert await store.load(kept) == b"three"


async def test_a_missing_image_is_not_stored(bucket: str, clock: ManualClock) -> None:
    store = make_store(bucket, clock)
    with pytest.raises(ImageNotStored):
        await store.load(ImageName.make(b"", "png", 5))


async def test_a_bucket_that_is_missing_is_an_error_without_its_name(bucket: str, clock: ManualClock) -> None:
    with pytest.raises(StoreFailed) as error:
        await make_store("s3://another-bucket", clock).save([b"one"], "png")
    assert "another-bucket" not in str(error.value)


async def test_a_server_that_is_down_is_an_error(
    bucket: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(object_stores, "BUCKET_OPTIONS", {"retry_config": {"max_retries": 0}})
    with pytest.raises(StoreFailed, match="cannot be opened"):
        await make_store(bucket, clock).save([b"one"], "png")
