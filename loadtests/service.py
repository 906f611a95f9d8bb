"""Starts a service on a free port for a load test, and stops it afterwards."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

START_SECONDS = 300.0
STOP_SECONDS = 60.0


LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Accounts are of no use after a test, and the start of a spare worker would disturb it.
QUIET = {"SAFELIGHT_KEEP_ACCOUNTS": "never", "SAFELIGHT_SPARE_WORKERS": "0"}


class CannotStart(Exception):
    """The service did not start; the message holds the end of its log."""


@dataclass(frozen=True)
class Service:
    """A running service; `pid` is the id of its process if it runs on this machine and was started here."""

    url: str
    pid: int | None = None


@contextmanager
def service(model: str, log: Path, variables: Mapping[str, str] = QUIET) -> Iterator[Service]:
    """Run `safelight serve` while the block runs.

    Args:
        model: The model.
        log: The file of its output.
        variables: Of its environment, beside those of this process.
    """
    port = _free_port()
    safelight = str(Path(sys.executable).with_name("safelight"))
    command = [safelight, "serve", "--model", model, "--port", str(port)]
    env = os.environ | variables
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield Service(url, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def keep_loopback_direct() -> None:
    """Let no request to this machine go to a proxy that the environment names, also those of locust."""
    values = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    entries = [entry.strip() for value in values for entry in value.split(",") if entry.strip()]
    value = "*" if "*" in entries else ",".join(dict.fromkeys([*entries, *LOOPBACK]))
    os.environ.update(no_proxy=value, NO_PROXY=value)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise CannotStart(
                f"safelight serve ended with status {process.returncode}:\n{log.read_text()[-2000:]}"
            )
        try:
            if httpx2.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise CannotStart(
        f"safelight serve was not ready after {START_SECONDS:.0f} s:\n{log.read_text()[-2000:]}"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
