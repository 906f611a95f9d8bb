"""Servers from Debian, each on a temporary folder and a free port: PostgreSQL, and Valkey or Redis."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.live import free_port

START_SECONDS = 60.0
PASSWORD = "swordfish"
NOBODY = "nobody"  # who runs PostgreSQL, which refuses root


def postgres_binary(name: str) -> Path | None:
    """A program of PostgreSQL, which Debian has in a folder of its version."""
    paths = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    on_path = shutil.which(name)
    return paths[-1] if paths else Path(on_path) if on_path else None


def valkey_binary() -> str | None:
    """The server of Valkey, or of Redis where Debian has no Valkey yet."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def postgres_server() -> Iterator[str]:
    """A server's URL, with user and password but without a database."""
    initdb, postgres = postgres_binary("initdb"), postgres_binary("postgres")
    assert initdb is not None and postgres is not None
    with _folder() as folder:
        (folder / "password").write_text(PASSWORD)
        data, options = folder / "data", _unprivileged(folder)
        secrets = ("--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=safelight")
        subprocess.run(
            [initdb, "-D", data, *secrets, "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True,
            capture_output=True,
            **options,
        )
        port = free_port()
        listen = ("-h", "127.0.0.1", "-p", str(port), "-k", str(folder))
        with _process([str(postgres), "-D", str(data), *listen, "-F"], port, signal.SIGINT, **options):
            url = f"postgresql://safelight:{PASSWORD}@127.0.0.1:{port}"
            _wait_for_logins(f"{url}/postgres")
            yield url


@contextmanager
def valkey_server(port: int = 0) -> Iterator[str]:
    """A server's URL; nothing is written to disk."""
    binary = valkey_binary()
    assert binary is not None
    port = port or free_port()
    with _folder() as folder:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
        with _process([binary, *options], port, signal.SIGTERM):
            yield f"valkey://127.0.0.1:{port}/0"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder directly in /tmp: its path is short enough for sockets, and other users may enter it."""
    folder = Path(tempfile.mkdtemp(prefix="safelight-test-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Options of `subprocess` with which root runs a program as another user, who owns `folder`."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(NOBODY)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}


@contextmanager
def _process(command: Sequence[str], port: int, end: signal.Signals, **options: Any) -> Iterator[None]:
    """Run a server until the block ends, from when its port is open."""
    output = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        try:
            _wait_for(port, process)
            yield
        finally:
            process.send_signal(end)
            with suppress(subprocess.TimeoutExpired):
                process.wait(START_SECONDS)
            process.kill()


def _wait_for(port: int, process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not open port {port}; exit status {process.poll()}")


def _wait_for_logins(url: str) -> None:
    """PostgreSQL opens its port before it lets anybody in: "the database system is starting up"."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
