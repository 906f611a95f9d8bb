"""A listening socket that outlives the processes that accept from it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safelight.service.runtime.addresses import BoundAddress, bound, find_address
from safelight.service.runtime.shared_listener import receive_listener, sharing

# Accepts connections and answers each with the number of the process, until it is killed.
SERVER = """
import os, sys
from pathlib import Path
from safelight.service.runtime.shared_listener import receive_listener
with receive_listener(Path(sys.argv[1])) as listener:
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.sendall(str(os.getpid()).encode())
        connection.close()
"""


@pytest.fixture
def at() -> Iterator[BoundAddress]:
    with bound(find_address("127.0.0.1", 0)) as at:
        yield at


@contextmanager
def serving(path: Path) -> Iterator[int]:
    """A process that serves the socket of `path`; killed at the end of the block."""
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "listening\n"
        try:
            yield process.pid
        finally:
            os.kill(process.pid, signal.SIGKILL)


def connect(at: BoundAddress) -> socket.socket:
    return socket.create_connection((at.address.host, at.address.port), timeout=30.0)


def test_a_connection_waits_for_the_next_process(at: BoundAddress, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with sharing(at.listener, path):
        with serving(path) as first, connect(at) as connection:
            assert connection.recv(99) == str(first).encode()
        with connect(at) as waiting, serving(path) as second:
            assert waiting.recv(99) == str(second).encode() != str(first).encode()


def test_several_processes_share_the_connections(at: BoundAddress, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with sharing(at.listener, path):
        with serving(path), serving(path) as survivor:
            pass
        with serving(path) as last:
            answers = set()
            for _ in range(4):
                with connect(at) as connection:
                    answers.add(int(connection.recv(99)))
            assert answers == {last} != {survivor}


def test_nothing_is_handed_out_after_the_end(at: BoundAddress, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with sharing(at.listener, path), receive_listener(path) as listener:
        assert listener.getsockname() == (at.address.host, at.address.port)
    with pytest.raises(OSError):
        receive_listener(path)
    with sharing(at.listener, path):  # the path is free again
        receive_listener(path).close()
