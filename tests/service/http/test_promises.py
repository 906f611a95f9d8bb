"""Promises over HTTP: what a request asks, what it is told, and refusals."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.service.errors import PromiseRefused, StageLost
from safelight.service.http.gateway import build_gateway
from safelight.service.keys.api_key import KeySpec
from safelight.service.messages import DecodeResult, DenoiseForecast, PromiseTerms
from safelight.service.settings import Settings
from tests.fakes import MODEL, USAGE, FakeBackend, fake_image
from tests.service.conftest import ROUTE
from tests.service.http.keyed import keyed_client, make_keys, make_settings

BODY = {"prompt": "a red apple"}
FORECAST = DenoiseForecast(
    promised_seconds=29.5, forecast_seconds=2.5, seconds=2.0, backlog_seconds=1.0, replica="r"
)


class PromisingBackend(FakeBackend):
    """Its images have a forecast."""

    async def generate(self, params: Any, output: Any, context: Any = None, *others: Any) -> DecodeResult:
        await super().generate(params, output, context, *others)
        return DecodeResult(fake_image(params, output), replace(USAGE, forecast=FORECAST))


@contextmanager
def app_of(backend: FakeBackend, *errors: Exception, **values: Any) -> Iterator[TestClient]:
    """A client of a gateway that has drawn its warm-up image; `backend` then raises `errors`."""
    app = build_gateway(backend, MODEL, Settings(keep_accounts="never", **values))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        backend.calls.clear()
        backend.errors += errors
        yield client


def terms_of(backend: FakeBackend) -> PromiseTerms:
    """What the last image was sent with."""
    terms = backend.calls[-1][2].terms
    assert terms is not None
    return terms


def refusal(retry: float = 2.0) -> PromiseRefused:
    error = PromiseRefused("too late", promised=29.5, forecast=31.5, retry=retry, work=1.5)
    error.replica = "r"
    return error


def test_the_service_promises_by_default_and_a_request_may_ask() -> None:
    backend = FakeBackend()
    with app_of(backend, promise_seconds=20.0) as client:
        client.post(ROUTE, json=BODY)
        default = terms_of(backend)
        client.post(ROUTE, json={**BODY, "deadline_ms": 5000, "priority": 4, "n": 2})
        asked = terms_of(backend)
    now = time.time()
    assert default.due is not None and 10 < default.due - now < 20
    assert (default.is_default, default.priority, default.images) == (True, 0, 1)
    assert asked.due is not None and -5 < asked.due - now < 5
    assert (asked.is_default, asked.priority, asked.images) == (False, 4, 2)


def test_without_a_default_nothing_is_promised() -> None:
    backend = PromisingBackend()
    with app_of(backend, promise_seconds=0.0) as client:
        usage = client.post(ROUTE, json=BODY).json()["usage"]["safelight"]
    assert terms_of(backend).due is None
    assert usage["promised_seconds"] is None
    assert usage["forecast_seconds"] > 2.5


def test_the_answer_says_what_was_promised_and_what_came() -> None:
    with app_of(PromisingBackend()) as client:
        usage = client.post(ROUTE, json={**BODY, "deadline_ms": 7000}).json()["usage"]["safelight"]
        assert usage["promised_seconds"] == 7.0
        assert usage["forecast_seconds"] == pytest.approx(2.6)
        assert usage["seconds"] < 7.0
        metrics = client.get("/metrics").text
    assert 'safelight_promised_requests_total{model="fake-8"} 1.0' in metrics
    assert 'safelight_kept_promises_total{model="fake-8"} 1.0' in metrics


def test_a_broken_promise_is_counted() -> None:
    with app_of(PromisingBackend()) as client:
        client.post(ROUTE, json={**BODY, "deadline_ms": 1})
        metrics = client.get("/metrics").text
    assert 'safelight_promised_requests_total{model="fake-8"} 1.0' in metrics
    assert 'safelight_kept_promises_total{model="fake-8"} 0.0' in metrics


def test_a_refusal_has_the_forecast_and_refuses_others_without_a_question() -> None:
    backend = FakeBackend()
    with app_of(backend, refusal(retry=50.0)) as client:
        first = client.post(ROUTE, json=BODY)
        second = client.post(ROUTE, json={**BODY, "prompt": "another"})
        metrics = client.get("/metrics").text
    assert (first.status_code, second.status_code) == (429, 429)
    assert len(backend.calls) == 1
    error = first.json()["error"]
    assert (error["code"], error["message"]) == ("promise_refused", "too late")
    assert error["forecast"] == {"seconds": 31.5, "promised_seconds": 29.5, "retry_seconds": 50.0}
    assert first.headers["retry-after"] == "50"
    assert int(second.headers["retry-after"]) > 50
    assert 'code="promise_refused",model="fake-8",outcome="refused"} 2.0' in metrics


def test_who_returns_in_time_is_sent_on() -> None:
    backend = FakeBackend()
    with app_of(backend, refusal(retry=0.2)) as client:
        assert client.post(ROUTE, json=BODY).status_code == 429
        assert client.post(ROUTE, json=BODY).status_code == 200
    assert terms_of(backend).patience == 1.0


def test_an_image_whose_stage_was_lost_keeps_its_place() -> None:
    backend = FakeBackend()
    with app_of(backend, StageLost()) as client:
        assert client.post(ROUTE, json=BODY).status_code == 200
    assert [terms.is_certain for *_, context in backend.calls if (terms := context.terms)] == [False, True]


def test_a_quote_draws_nothing_and_is_no_request() -> None:
    backend = FakeBackend()
    with app_of(backend) as client:
        quote = client.post("/v1/images/quote", json={**BODY, "deadline_ms": 9000})
        metrics = client.get("/metrics").text
    assert quote.status_code == 200
    assert quote.json() == {
        "admitted": True,
        "forecast_seconds": 2.6,
        "promised_seconds": 29.5,
        "retry_seconds": 0.0,
        "backlog_seconds": 1.25,
        "model": "fake-8",
    }
    assert not backend.calls
    assert "safelight_requests_total{" not in metrics


def test_a_key_bounds_the_priority(tmp_path: Path) -> None:
    keys = make_keys(tmp_path, KeySpec("urgent", max_priority=5))
    with keyed_client(make_settings(tmp_path)) as client:
        statuses = {
            (name, priority): client.post(
                ROUTE, json={**BODY, "priority": priority}, headers=keys.bearer(name)
            ).status_code
            for name in ("urgent", "alice")
            for priority in (0, 5, 6)
        }
    refused = {("urgent", 6), ("alice", 5), ("alice", 6)}
    assert statuses == {asked: 400 if asked in refused else 200 for asked in statuses}
