"""Output files: what is refused before any work, and that a file appears whole or not at all."""

import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.service.runtime.output_files import CannotWrite, check_writable, write_file


@pytest.fixture
def umask() -> Iterator[int]:
    previous = os.umask(0o027)
    yield 0o027
    os.umask(previous)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "Is a directory"),
        ("nowhere/x.png", "there is no folder"),
        ("file/x.png", "there is no folder"),
        ("folder", "Is a directory"),
        ("link-to-folder", "Is a directory"),
        ("dangling/x.png", "there is no folder"),
        ("dangling", "No such file or directory"),
        (f"{'x' * 252}.png", "File name too long"),
        (f"{'ä' * 126}.png", "File name too long"),
        ("x" * 300 + "/x.png", "File name too long"),
        ("a\0b.png", "null"),
        ("/proc/x.png", "No such file or directory"),  # where not even root may write
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link-to-folder").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere/x")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for call in (check_writable, lambda target: write_file(target, b"x")):
        with pytest.raises(CannotWrite, match=reason):
            call(tmp_path / path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_check_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new", "x" * 251 + ".png"):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_file_has_the_permissions_of_a_new_or_of_the_old_one(tmp_path: Path, umask: int) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch()
    old.chmod(0o604)
    for path in (new, old):
        write_file(path, b"x")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, old)] == [0o666 & ~umask, 0o604]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # fails halfway, as on a full disk
    try:
        with pytest.raises(CannotWrite, match="File too large"):
            write_file(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["x"] and path.read_bytes() == b"old"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/x")
    write_file(link, b"x")
    assert link.is_symlink() and (tmp_path / "folder" / "x").read_bytes() == b"x"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    check_writable(pipe)
    write_file(pipe, b"x")
    reader.join()
    assert received == [b"x"] and pipe.is_fifo()


def test_a_write_protected_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be written to, so replacing the file would not fail."""
    (tmp_path / "x").touch(mode=0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, who may run the tests, is never refused
    with pytest.raises(CannotWrite, match="Permission denied"):
        check_writable(tmp_path / "x")
    check_writable(tmp_path / "y")
