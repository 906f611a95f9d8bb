"""A Prometheus for tests, run on loopback. tests/needs.py says what is missing without one."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.live import free_port

START_SECONDS = 30.0
STOP_SECONDS = 20.0


class Prometheus:
    """A running server, queried by its HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=f"{url}/api/v1", timeout=10)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        answer = self._http.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, query: str) -> float | None:
        """The value of the only sample; None if there is none yet."""
        samples = self.ask(query)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their latest evaluation."""
        groups = self._http.get("/rules").raise_for_status().json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        try:
            return self._http.get("/status/runtimeinfo").status_code == 200
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


@contextmanager
def running(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server with this configuration and an empty storage in `folder`, stopped when the block ends."""
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    prometheus = Prometheus(f"http://{address}")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not prometheus.is_ready():
            log_text = (folder / "prometheus.log").read_text(errors="replace")[-4000:]
            assert process.poll() is None and time.monotonic() < deadline, log_text
            time.sleep(0.1)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
