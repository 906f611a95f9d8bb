"""A gateway with jobs over a fake backend, whose database and images are in a temporary folder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.jobs import queue
from safelight.service.settings import Settings
from safelight.service.usage.records import UsageRecord
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.openapi_answers import check_answers

JOBS = "/v1/images/jobs"
ASYNC = {"prefer": "respond-async"}
BODY: dict[str, Any] = {"prompt": "p", "seed": 7}
SECONDS = 30.0  # in which anything that a test waits for has happened


@dataclass
class Service:
    """A gateway."""

    app: FastAPI
    client: TestClient
    backend: FakeBackend
    records: list[UsageRecord]

    def submit(self, headers: dict[str, str] | None = None, route: str = ROUTE, **fields: object) -> str:
        """The path of a new job."""
        response = self.client.post(route, json=BODY | fields, headers=ASYNC | (headers or {}))
        assert response.status_code == 202, response.text
        return urlsplit(response.headers["location"]).path

    def show(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        response = self.client.get(path, headers=headers)
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    def wait(self, path: str, state: str = "done", headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The job, once it is in this state."""
        self.until(lambda: self.show(path, headers)["state"] == state)
        return self.show(path, headers)

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + SECONDS
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close_gate(self) -> None:
        """From now on calls wait."""
        self.client.portal.call(self._set_gate, False)  # type: ignore[union-attr]

    def open_gate(self) -> None:
        self.client.portal.call(self._set_gate, True)  # type: ignore[union-attr]

    async def _set_gate(self, is_open: bool) -> None:
        (self.backend.gate.set if is_open else self.backend.gate.clear)()

    def draw(self, headers: dict[str, str] | None = None, **fields: object) -> Response:
        """The answer to a request that waits."""
        return self.client.post(ROUTE, json=BODY | fields, headers=headers)

    @property
    def num_drawn(self) -> int:
        """Images of requests, without those of the warm-up."""
        return sum(params.seed == 7 for params, _ in self.backend.drawn)


def make_settings(folder: Path, **changes: Any) -> Settings:
    return Settings(**{"database": str(folder / "database"), "image_store": str(folder / "images")} | changes)


@contextmanager
def serving(settings: Settings, backend: FakeBackend | None = None) -> Iterator[Service]:
    """A gateway until the block ends, whose answers are held to the OpenAPI schema."""
    backend = backend or FakeBackend()
    app = build_gateway(backend, MODEL, settings)
    records: list[UsageRecord] = []
    app.state.gateway.outbox.put = records.append
    with TestClient(app) as client:
        check_answers(client)
        service = Service(app, client, backend, records)
        service.until(lambda: bool(backend.drawn))  # the warm-up image
        yield service


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.05)
    with serving(make_settings(tmp_path)) as service:
        yield service
