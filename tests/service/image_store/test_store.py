"""Images in a folder: stored whole or not at all, kept as promised, and nothing else is touched."""

import asyncio
import os
import resource
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from safelight.service.errors import ImageNotStored, StoreFailed
from safelight.service.image_store import signing_key
from safelight.service.image_store.names import ImageName
from safelight.service.image_store.signing_key import KEY_NAME, folder_key
from safelight.service.image_store.store import ImageStore
from tests.clock import ManualClock

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "images"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.25)


def make_store(folder: Path, clock: ManualClock, max_bytes: int = 0) -> ImageStore:
    return ImageStore(str(folder), link_seconds=HOUR, max_bytes=max_bytes, clock=clock.time)


def image_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != KEY_NAME)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let writes beyond that size fail halfway, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_images_are_stored_and_found(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock)
    names = await store.save([b"one", b"two"], "webp")
    assert [await store.load(name) for name in names] == [b"one", b"two"]
    assert {(name.expires, name.format) for name in names} == {(1_700_003_601, "webp")}
    assert image_files(folder) == sorted(map(str, names))


async def test_nothing_is_made_before_it_is_needed(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock)
    task = asyncio.ensure_future(store.run())
    await asyncio.sleep(0)
    task.cancel()
    assert not folder.exists()
    await store.signer()
    assert folder.is_dir()


async def test_only_this_user_reads_the_folder_and_the_key(folder: Path, clock: ManualClock) -> None:
    await make_store(folder, clock).signer()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / KEY_NAME).stat().st_mode) == 0o600


async def test_two_gateways_share_the_key_and_the_images(folder: Path, clock: ManualClock) -> None:
    first, second = make_store(folder, clock), make_store(folder, clock)
    query = (await first.signer()).query("name", 5)
    assert query == (await second.signer()).query("name", 5)
    (name,) = await first.save([b"one"], "png")
    assert await second.load(name) == b"one"


def test_gateways_that_start_at_once_agree_on_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has found no key before any has written one."""
    make_key, barrier = signing_key._new_key, threading.Barrier(4)

    def make_key_with_others() -> bytes:
        barrier.wait(60.0)
        return make_key()

    monkeypatch.setattr(signing_key, "_new_key", make_key_with_others)
    with ThreadPoolExecutor(4) as pool:
        keys = set(pool.map(folder_key, [tmp_path] * 4))
    assert keys == {folder_key(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == [KEY_NAME]


def test_the_first_key_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway has found no key before the first one wrote it."""
    key = folder_key(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert folder_key(tmp_path) == key


async def test_a_key_that_is_given_is_used_and_none_is_made(folder: Path, clock: ManualClock) -> None:
    given = ImageStore(str(folder), key="k" * 32)
    other = ImageStore(str(folder / "other"), key="k" * 32)
    queries = [(await store.signer()).query("name", 5) for store in (given, other, make_store(folder, clock))]
    assert queries[0] == queries[1] != queries[2]
    assert not (folder / "other" / KEY_NAME).exists()


async def test_a_damaged_key_is_an_error(folder: Path, clock: ManualClock) -> None:
    folder.mkdir(parents=True)
    (folder / KEY_NAME).write_bytes(b"short\n")
    with pytest.raises(StoreFailed, match="cannot be opened"):
        await make_store(folder, clock).signer()


async def test_a_full_disk_leaves_nothing_behind(folder: Path, clock: ManualClock) -> None:
    """The first image fits and the second does not: neither stays."""
    store = make_store(folder, clock)
    (kept,) = await store.save([b"kept"], "png")
    with largest_file(1000), pytest.raises(StoreFailed, match=r"could not be stored: File too large\."):
        await store.save([b"small", bytes(5000)], "png")
    assert image_files(folder) == [str(kept)]
    assert await store.load(kept) == b"kept"
    (later,) = await store.save([bytes(5000)], "png")  # the store goes on
    assert await store.load(later) == bytes(5000)


async def test_a_full_disk_is_swept_and_tried_again(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room that expired images take is used before a caller is told that there is none."""
    store = make_store(folder, clock)
    await store.save([b"old"], "png")
    clock.advance(2 * HOUR)
    put = store._put

    async def put_unless_full(objects: object, name: ImageName, image: bytes) -> None:
        if len(image_files(folder)) >= 1:
            raise OSError(28, "No space left on device")
        await put(objects, name, image)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_put", put_unless_full)
    (name,) = await store.save([b"new"], "png")
    assert image_files(folder) == [str(name)]
    with pytest.raises(StoreFailed, match="No space left on device"):
        await store.save([b"newer"], "png")
    assert image_files(folder) == [str(name)]


async def test_a_caller_that_goes_away_leaves_nothing_behind(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(folder, clock)
    await store.signer()
    put, is_written, never = store._put, asyncio.Event(), asyncio.Event()

    async def put_first(objects: object, name: ImageName, image: bytes) -> None:
        if image == b"second":
            await never.wait()
        await put(objects, name, image)  # type: ignore[arg-type]
        is_written.set()

    monkeypatch.setattr(store, "_put", put_first)
    task = asyncio.ensure_future(store.save([b"first", b"second"], "png"))
    await is_written.wait()
    assert len(image_files(folder)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert image_files(folder) == []


async def test_a_store_that_hangs_is_given_up(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.service.image_store.store.SAVE_SECONDS", 0.0)
    with pytest.raises(StoreFailed, match="did not answer in time"):
        await make_store(folder, clock).save([b"image"], "png")


async def test_a_folder_that_cannot_be_made_is_an_error_without_its_path(
    tmp_path: Path, clock: ManualClock
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match="The image store cannot be opened: Not a directory") as error:
        await make_store(tmp_path / "file" / "images", clock).signer()
    assert str(tmp_path) not in str(error.value)


async def test_images_stay_until_their_links_expire(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock)
    (first,) = await store.save([b"first"], "png")
    clock.advance(HOUR / 2)
    (second,) = await store.save([b"second"], "png")
    clock.now = first.expires - 0.001
    assert await store.sweep() == 0
    clock.now = float(first.expires)
    assert await store.sweep() == 1
    assert image_files(folder) == [str(second)]
    with pytest.raises(ImageNotStored, match="deleted"):
        await store.load(first)


async def test_another_gateway_sweeps_too(folder: Path, clock: ManualClock) -> None:
    """Images of a gateway that is no more are deleted by those that are."""
    await make_store(folder, clock).save([b"first"], "png")
    clock.advance(2 * HOUR)
    later = make_store(folder, clock)
    task = asyncio.ensure_future(later.run())
    await wait_until_empty(folder)
    task.cancel()


async def test_too_many_bytes_are_swept_at_once(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.service.image_store.store.SWEEP_SECONDS", 1e6)
    store = make_store(folder, clock, max_bytes=1000)
    task = asyncio.ensure_future(store.run())
    names = []
    for k in range(11):
        names += await store.save([bytes([k]) * 100], "png")
        os.utime(folder / str(names[-1]), (k, k))
    async with asyncio.timeout(60.0):  # only if it is never swept
        while len(image_files(folder)) > 9:
            await asyncio.sleep(0.001)
    task.cancel()
    assert set(image_files(folder)) == set(map(str, names[-9:]))


async def test_images_that_could_not_stay_are_not_promised(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock, max_bytes=1000)
    await store.save([bytes(900)], "png")
    with pytest.raises(StoreFailed, match="image_store_bytes"):
        await store.save([bytes(451), bytes(450)], "png")
    assert len(image_files(folder)) == 1


async def test_what_the_store_has_not_written_is_left_alone(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock, max_bytes=10)
    await store.signer()
    key = (folder / KEY_NAME).read_bytes()
    (folder / "holiday.png").write_bytes(bytes(100))
    (folder / "albums").mkdir()
    (folder / "albums" / str(ImageName.make(b"", "png", 1))).write_bytes(bytes(100))
    assert await store.sweep() == 0
    assert (folder / "holiday.png").exists()
    assert len(list((folder / "albums").iterdir())) == 1
    assert (folder / KEY_NAME).read_bytes() == key


async def test_another_file_in_an_images_place_is_not_served(
    folder: Path, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(folder, clock)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    changed, linked, replaced = await store.save([b"one", b"two", b"three"], "png")
    (folder / str(changed)).write_bytes(b"oNe")
    (folder / str(linked)).unlink()
    (folder / str(linked)).symlink_to(secret)
    (folder / str(replaced)).unlink()
    (folder / str(replaced)).mkdir()
    for name in (changed, linked):
        with pytest.raises(ImageNotStored, match="changed by another program"):
            await store.load(name)
    with pytest.raises((ImageNotStored, StoreFailed)):
        await store.load(replaced)
    assert str(changed) in caplog.text


async def test_too_large_an_object_is_not_read(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.service.image_store.store.MAX_IMAGE_BYTES", 2)
    store = make_store(folder, clock)
    (name,) = await store.save([b"one"], "png")
    with pytest.raises(ImageNotStored, match="changed"):
        await store.load(name)


async def test_files_of_killed_writers_are_swept_after_a_while(folder: Path, clock: ManualClock) -> None:
    store = make_store(folder, clock)
    (name,) = await store.save([b"one"], "png")
    old, new, foreign = (folder / text for text in (f"{name}#1", f"{name}#2", "holiday.png#1"))
    for path, age in ((old, 2 * HOUR), (new, 60.0), (foreign, 2 * HOUR)):
        path.write_bytes(b"half")
        os.utime(path, (clock.now - age, clock.now - age))
    await store.sweep()
    assert image_files(folder) == sorted([str(name), new.name, foreign.name])


async def test_a_failed_sweep_is_logged_and_tried_again(
    folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("safelight.service.image_store.store.SWEEP_SECONDS", 0.0)
    store = make_store(folder, clock)
    await store.save([b"one"], "png")
    clock.advance(2 * HOUR)
    moved = folder.rename(folder.with_name("moved"))
    folder.write_text("no folder")
    task = asyncio.ensure_future(store.run())
    while "not deleted" not in caplog.text:
        await asyncio.sleep(0.001)
    folder.unlink()
    moved.rename(folder)
    await wait_until_empty(folder)
    task.cancel()


async def wait_until_empty(folder: Path) -> None:
    while image_files(folder):
        await asyncio.sleep(0.001)
