"""Output files: checked before the work whose result they will hold, and written whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


class CannotWrite(Exception):
    """A file that cannot be written; the message is one sentence that names it."""


def check_writable(path: Path) -> None:
    """Raise `CannotWrite` unless `path` can be written now; a file that exists is left as it is.

    A new file is tried out under another name, because permissions alone do not tell: a file system may be
    read-only, and root may be refused.
    """
    with _as_cannot_write(path):
        target = _target(path)
        if _is_special(target):
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        partial = _partial(target)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        partial.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which never holds a part of it. Raises `CannotWrite`.

    The file has the permissions of the one that it replaces, or else those of any new file. A link is
    followed; what is no regular file, such as a pipe, is written to.
    """
    with _as_cannot_write(path):
        target = _target(path)
        if _is_special(target):
            target.write_bytes(data)
            return
        partial = _partial(target)
        try:
            with partial.open("xb") as file:
                if target.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                file.write(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file that `path` leads to.

    Raises `CannotWrite` if its folder is missing, and `OSError` for a folder and for an impossible name.
    """
    if not path.parent.is_dir():
        raise CannotWrite(f"there is no folder {path.parent}")
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return target


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _partial(target: Path) -> Path:
    """A name in the folder of `target` that is not in use, and short whatever the target is called."""
    return target.with_name(f".safelight-{secrets.token_hex(8)}.partial")


@contextlib.contextmanager
def _as_cannot_write(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise CannotWrite(f"cannot write {path}: {reason}") from None
