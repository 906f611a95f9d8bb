"""Every refusal over HTTP: its status, and the values of its headers."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from safelight.service.errors import (
    BrokenImage,
    ClientGone,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    ServiceError,
    ShuttingDown,
    StageFailed,
    StageLost,
)
from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.asgi import AsgiClient
from tests.service.conftest import ROUTE
from tests.virtual_time import run_in_virtual_time

JSON = {"content-type": "application/json"}
BODY: dict[str, object] = {"prompt": "p"}


class BackPressureError(Exception):
    """Stands in for Ray's error of a full queue, by name and module."""

    __module__ = "ray.serve.exceptions"


class ActorDiedError(Exception):
    """Stands in for Ray's error of a replica that has died; the base class is the name that counts."""

    __module__ = "ray.exceptions"


class RayActorError(ActorDiedError):
    __module__ = "ray.exceptions"


# What the backend raises, with the answer's status, code and Retry-After.
BACKEND_ERRORS: list[tuple[Exception, int, str, str | None]] = [
    (QueueFull(), 429, "queue_full", "2"),
    (BackPressureError(), 429, "queue_full", "2"),
    (ShuttingDown(), 503, "shutting_down", "10"),
    (DeadlineExceeded(), 503, "deadline_exceeded", "10"),
    (TimeoutError(), 503, "deadline_exceeded", "10"),
    (StageFailed(), 503, "stage_failed", "5"),
    (StageLost(), 503, "stage_lost", "5"),
    (RayActorError(), 503, "stage_lost", "5"),
    (BrokenImage(), 503, "broken_picture", None),
    (ServiceError(), 503, "service_unavailable", "5"),
    (KeyError("secret"), 503, "service_unavailable", "5"),
    (ClientGone(), 499, "client_gone", None),
    (InvalidRequest("seed: no", "seed"), 400, "invalid_value", None),
]


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    BACKEND_ERRORS,
    ids=[type(error).__name__ for error, *_ in BACKEND_ERRORS],
)
def test_an_error_of_a_stage_has_its_status_and_headers(
    error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    app = build_gateway(FakeBackend(*[error] * 8), MODEL, Settings())  # without lifespan: no warm-up image
    response = TestClient(app).post(ROUTE, json=BODY, headers={"x-request-id": "job-17"})
    check_refusal(response, status, code, retry_after)
    assert response.headers["x-request-id"] == "job-17"


# Requests that the gateway refuses by itself, with the settings, the answer's status and its code.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "invalid": ({}, {"json": {"prompt": ""}}, 400, "invalid_value"),
    "malformed": ({}, {"content": b"{", "headers": JSON}, 400, "invalid_json"),
    "unknown field": ({"strict": True}, {"json": {"prompt": "p", "colour": 1}}, 400, "unknown_parameter"),
    "encoding": (
        {},
        {"content": b"x", "headers": JSON | {"content-encoding": "br"}},
        415,
        "unsupported_encoding",
    ),
    "model": ({}, {"json": {"prompt": "p", "model": "x"}}, 404, "model_not_found"),
    "too large": ({"max_body_bytes": 8}, {"json": BODY}, 413, "request_too_large"),
    "no JSON": ({}, {"content": b"x"}, 415, "unsupported_media_type"),
    "admin key": ({"admin_key": "k"}, {"method": "GET", "url": "/v1/accounting"}, 401, "invalid_api_key"),
    "query": ({}, {"method": "GET", "url": "/v1/accounting?window=0"}, 400, "invalid_value"),
    "route": ({}, {"url": "/v1/nothing"}, 404, "not_found"),
    "method": ({}, {"method": "GET"}, 405, "method_not_allowed"),
}


@pytest.mark.parametrize(("settings", "request_options", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_is_not_to_be_retried(
    settings: dict[str, Any], request_options: dict[str, Any], status: int, code: str
) -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(**settings)))
    response = client.request(**{"method": "POST", "url": ROUTE} | request_options)
    check_refusal(response, status, code, None)
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers.get("allow") == ("POST" if status == 405 else None)
    assert response.headers.get("accept-encoding") == (
        "gzip, deflate" if code == "unsupported_encoding" else None
    )
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_a_curve_that_is_not_measured_yet_is_asked_for_again() -> None:
    response = TestClient(build_gateway(FakeBackend(), MODEL, Settings())).get("/v1/curve")
    check_refusal(response, 503, "stage_failed", "5")


async def test_more_images_than_there_is_room_for_are_429() -> None:
    backend = FakeBackend()
    async with served(backend, max_pictures=2) as http:
        backend.gate.clear()
        first = asyncio.ensure_future(http.post(ROUTE, json=BODY))
        await backend.waiting.acquire()
        check_refusal(await http.post(ROUTE, json={**BODY, "n": 2}), 429, "queue_full", "2")
        backend.gate.set()
        assert (await first).status_code == 200
        assert (await http.post(ROUTE, json={**BODY, "n": 2})).status_code == 200


async def test_a_service_that_is_being_stopped_refuses_new_requests() -> None:
    backend = FakeBackend()
    app = build_gateway(backend, MODEL, Settings())
    await app.state.gateway.dispatcher.drain()
    async with connected(app) as http:
        check_refusal(await http.post(ROUTE, json=BODY), 503, "shutting_down", "10")


def test_an_image_that_takes_longer_than_the_deadline_is_503() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    client = AsgiClient(json.dumps(BODY).encode())
    run_in_virtual_time(
        client.call(build_gateway(backend, MODEL, Settings(deadline_seconds=300.0), proxied=True))
    )
    assert (client.status, client.headers["retry-after"]) == (503, "10")
    assert client.json["error"]["code"] == "deadline_exceeded"


def served(backend: FakeBackend, **settings: Any) -> httpx2.AsyncClient:
    """A client of a gateway over `backend`, on this event loop."""
    return connected(build_gateway(backend, MODEL, Settings(**settings)))


def connected(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gateway")


def check_refusal(response: Any, status: int, code: str, retry_after: str | None) -> None:
    """Assert the status, the body and the headers of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers.get("retry-after") == retry_after
    is_hopeless = status < 500 and status not in (408, 429) or code in ("broken_picture", "deadline_exceeded")
    assert response.headers.get("x-should-retry") == ("false" if is_hopeless else None)
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["openai-processing-ms"]) >= 0
    error: Mapping[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], "secret" in response.text) == (code, False)
