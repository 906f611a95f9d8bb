"""The times that responses tell, by a clock that the test moves."""

import time
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from safelight.service.http import middleware
from safelight.service.http.gateway import build_gateway
from safelight.service.http.middleware import Envelope
from safelight.service.settings import Settings
from tests.clock import ManualClock
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE


def test_the_processing_time_is_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(now=100.0)
    clock.install(monkeypatch, middleware)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(1.5)
        await PlainTextResponse("done")(scope, receive, send)

    response = TestClient(Envelope(app, proxied=False)).get("/")
    assert response.headers["openai-processing-ms"] == "1500"


class SlowBackend(FakeBackend):
    """Moves the clock for every image."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds

    async def generate(self, *args: Any) -> Any:
        self._clock.advance(self._seconds)
        return await super().generate(*args)


def test_the_seconds_of_a_request_run_from_its_arrival_to_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(now=100.0)
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    client = TestClient(build_gateway(SlowBackend(clock, 1.25), MODEL, Settings()))  # no warm-up image
    usage = client.post(ROUTE, json={"prompt": "p", "n": 2}).json()["usage"]
    assert usage["safelight"]["seconds"] == 2.5
    report = client.get("/v1/accounting", params={"latest": 1}).json()
    assert report["latest"][0]["seconds"] == report["latency_seconds"]["p50"] == 2.5
    labels = f'model="{MODEL.id}",outcome="done"'
    assert f"safelight_request_duration_seconds_sum{{{labels}}} 2.5" in client.get("/metrics").text
