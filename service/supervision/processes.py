"""The processes that this process has started, and those that they have started."""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable

import psutil

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
POLL_SECONDS = 0.05


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they are found; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All processes below this one that have not ended."""
    return [process for process in psutil.Process().children(recursive=True) if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs, and its id has not been given to another since."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is there, and may not be looked at
        return True


def title_of(process: psutil.Process) -> str:
    """What the process calls itself, such as `raylet` or `ray::ServeController`; empty if it has ended.

    Without the method that an actor of Ray runs, which it adds.
    """
    try:
        command = process.cmdline()
        title = command[0] if command else ""
        return title.split()[0].split(".")[0] if title.startswith("ray::") else str(process.name())
    except (psutil.Error, IndexError):
        return ""


def kill_all(others: Iterable[psutil.Process] = (), seconds: float = 5.0) -> list[psutil.Process]:
    """Kill all descendants, and `others`, and wait until they have ended; returns those that have not.

    A process that cannot be interrupted, such as one that waits for a broken disk, may outlive `seconds`.
    """
    remembered = set(others)
    give_up = time.monotonic() + seconds
    while True:
        remembered.update(descendants())
        survivors = [process for process in remembered if is_alive(process)]
        for process in survivors:
            with contextlib.suppress(psutil.Error):
                process.kill()
        reap()
        if not survivors or time.monotonic() > give_up:
            return survivors
        time.sleep(POLL_SECONDS)


def reap(keep: int = 0) -> None:
    """Take note of children that have ended, so that the kernel forgets them; not of the one of id `keep`."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.pid != keep and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
