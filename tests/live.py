"""Runs a real `safelight serve` in a process group of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

SAFELIGHT = Path(sys.executable).with_name("safelight")
READY_SECONDS = 240.0  # generous: the machine may be busy
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class LiveService:
    """A service that has answered /readyz with 200."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(
    folder: Path, *options: str, safelight: Path = SAFELIGHT, env: Mapping[str, str] | None = None
) -> Iterator[LiveService]:
    """Run `safelight serve` in `folder` until the block ends; log and accounts stay in `folder`."""
    port, log = free_port(), folder / "serve.log"
    defaults = {"XDG_DATA_HOME": str(folder / "data"), "SAFELIGHT_SPARE_WORKERS": "0"}  # they take seconds
    env = defaults | dict(os.environ if env is None else env)
    command = [str(safelight), "serve", "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(LiveService(port, process, log))
        yield LiveService(port, process, log)
        process.send_signal(signal.SIGTERM)  # a shell's background processes ignore SIGINT
        process.wait(STOP_SECONDS)
    finally:
        _end(process)


def user_environment() -> dict[str, str]:
    """The environment of a user's shell: without the variables that help Python find packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_until_ready(service: LiveService) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while not _answers(f"{service.url}/readyz"):
        if service.process.poll() is not None or time.monotonic() > give_up:
            code = service.process.poll()
            state = "is not ready" if code is None else f"ended with {code}"
            log = service.log.read_text(errors="replace")[-8000:]
            raise RuntimeError(f"safelight serve {state}; its log:\n{log}")
        time.sleep(0.25)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=10).status_code == 200
    except httpx2.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
