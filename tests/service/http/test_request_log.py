"""The log line of every request, and its one id in answer, error, line and accounting."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.service.errors import BrokenImage, StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.http.request_ids import RequestIds, proxy_middlewares
from safelight.service.http.request_log import describe_error
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.asgi import AsgiClient
from tests.service.conftest import ROUTE

LEGAL = ("my-request_1", "a:b.c", "x" * 128)
ILLEGAL = ("my request 1", "x" * 129, "a/b", "a+b=", "a\tb", "\xe4", "", "a,b", "{}")


class Lines:
    """The fields of the request lines that were written, with their levels."""

    def __init__(self, caplog: pytest.LogCaptureFixture):
        self._caplog = caplog

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in self._caplog.records:
            if record.name == "safelight.service.http.request_log":
                yield {"level": record.levelname, **record.fields}  # type: ignore[attr-defined]

    def last(self) -> dict[str, Any]:
        *_, last = self
        return last


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.DEBUG, "safelight")
    return Lines(caplog)


def test_a_request_is_one_line_without_its_prompt(client: TestClient, lines: Lines) -> None:
    answer = client.post(ROUTE, json={"prompt": "a secret apple", "n": 2}, headers={"x-request-id": "r-1"})
    assert answer.status_code == 200
    [line] = [line for line in lines if line["path"] == ROUTE]
    assert line.pop("seconds") >= 0.0
    assert line == {
        "level": "INFO", "id": "r-1", "method": "POST", "path": ROUTE, "status": 200, "model": "fake-8",
        "images": 2, "size": "8x8", "steps": 4, "queue_seconds": 1.375,
    }  # fmt: skip
    assert "secret" not in str(list(lines))


def test_what_was_adjusted_is_in_the_line_by_name(client: TestClient, lines: Lines) -> None:
    client.post(ROUTE, json={"prompt": "p", "size": "64x64", "negative": "secret"})
    line = lines.last()
    assert line["adjusted"] == "size, negative" and "secret" not in str(line)


def test_prompts_are_logged_if_the_operator_says_so(backend: FakeBackend, lines: Lines) -> None:
    client = TestClient(build_gateway(backend, MODEL, Settings(log_prompts=True)))
    client.post(ROUTE, json={"prompt": "an apple\nforged"})
    assert lines.last()["prompt"] == "an apple\nforged"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"prompt": "p", "n": 99}, {"code": "invalid_value", "param": "n"}),
        ({"prompt": "p", "colour": 1}, {"code": "unknown_parameter", "param": "colour"}),
        ({"prompt": ["secret"]}, {"code": "invalid_value", "param": "prompt", "cause": None}),
        ({"prompt": "p", "negative_prompt": ["secret"]}, {"param": "negative_prompt", "cause": None}),
        ({"prompt": "p", "negative": ["secret"]}, {"param": "negative", "cause": None}),
        (
            {"prompt": "p", "extra_body": {"negative_prompt": ["secret"]}},
            {"param": "extra_body.negative_prompt", "cause": None},
        ),
        ({"prompt": "p", "model": "x"}, {"status": 404, "code": "model_not_found"}),
    ],
)
def test_a_refusal_is_a_line_with_its_cause(
    client: TestClient, lines: Lines, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    headers = {"x-safelight-strict": "1"} if "colour" in body else {}
    answer = client.post(ROUTE, json=body, headers=headers)
    line = lines.last()
    assert line["level"] == "WARNING" and line["id"] == answer.headers["x-request-id"]
    assert line == line | {"status": 400, "model": "fake-8"} | fields
    assert "secret" not in str(line)
    if "cause" not in fields:
        assert line["cause"] == answer.json()["error"]["message"]


def test_a_long_path_is_cut(client: TestClient, lines: Lines) -> None:
    client.get(f"/{'x' * 5000}")
    assert lines.last()["path"] == f"/{'x' * 999}..."


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/x", "/v1/accounting?window=-1"])
def test_other_refusals_are_lines_too(client: TestClient, lines: Lines, path: str) -> None:
    answer = client.get(path)
    line = lines.last()
    assert (line["level"], line["status"], line["path"]) == (
        "WARNING",
        answer.status_code,
        path.split("?")[0],
    )
    assert line["cause"] == answer.json()["error"]["message"]


def test_probes_are_of_no_interest(client: TestClient, lines: Lines) -> None:
    for path in ("/livez", "/metrics", "/v1/models"):
        client.get(path)
        assert lines.last()["level"] == "DEBUG"


class RayTaskError(RuntimeError):
    """As Ray's: its text is a traceback of many lines, and the exception itself is under `cause`."""

    def __init__(self, cause: Exception):
        super().__init__(f"ray::Denoiser.generate()\n  File x\n{cause}")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (ValueError("boom\nforged"), "service_unavailable", "ValueError: boom\nforged"),
        (TimeoutError(), "deadline_exceeded", "TimeoutError"),
        (BrokenImage("no numbers"), "broken_picture", "BrokenImage: no numbers"),
        (RayTaskError(StageFailed("gone")), "stage_failed", "StageFailed: gone"),
    ],
)
def test_a_fault_is_a_line_with_its_first_cause(
    client: TestClient, backend: FakeBackend, lines: Lines, error: Exception, code: str, cause: str
) -> None:
    backend.errors.append(error)
    answer = client.post(ROUTE, json={"prompt": "p"})
    line = lines.last()
    assert (line["level"], line["status"], line["code"], line["cause"]) == ("ERROR", 503, code, cause)
    assert line["id"] == answer.headers["x-request-id"] == answer.json()["request_id"]
    is_unforeseen = code == "service_unavailable"
    assert ("Traceback" in line.get("traceback", "")) == is_unforeseen
    assert "traceback" not in answer.text.lower()


def test_causes_in_a_circle_end() -> None:
    error = StageFailed("x")
    error.__cause__ = error
    assert describe_error(error, error)["cause"] == "StageFailed: x"


async def test_a_client_that_leaves_is_a_line(backend: FakeBackend, lines: Lines) -> None:
    backend.gate.clear()
    client = AsgiClient.of({"prompt": "p"})
    call = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    await asyncio.wait_for(backend.waiting.acquire(), 10.0)
    client.disconnected.set()
    await call
    assert (lines.last()["status"], lines.last()["code"]) == (499, "client_gone")


@pytest.mark.parametrize("sent", [*LEGAL, *ILLEGAL])
def test_one_id_is_everywhere(client: TestClient, lines: Lines, sent: str) -> None:
    headers = {b"x-request-id": sent.encode("latin-1")}
    refused = client.post(ROUTE, json={"prompt": "p", "n": 0}, headers=headers)
    request_id = refused.headers["x-request-id"]
    assert (request_id == sent) == (sent in LEGAL)
    assert refused.json()["request_id"] == lines.last()["id"] == request_id
    report = client.get("/v1/accounting", params={"latest": 1}).json()
    assert report["latest"][0]["request_id"] == request_id


@pytest.mark.parametrize("sent", [*LEGAL, *ILLEGAL, None])
def test_serves_proxy_gets_and_answers_the_same_id(sent: str | None) -> None:
    """As Serve stacks it: our middleware around its own, which adds the header to the answer once more."""
    forwarded_ids: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
        forwarded_ids.extend(ids)

        async def send_twice(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(b"X-Request-ID", ids[0]), (b"x-request-id", b"stale")]
            await send(message)

        await PlainTextResponse("done")(scope, receive, send_twice)

    [middleware] = proxy_middlewares()
    assert isinstance(middleware, Middleware) and repr(middleware) == "Middleware(RequestIds)"
    proxy: ASGIApp = RequestIds(app)
    headers = {} if sent is None else {b"x-request-id": sent.encode("latin-1")}
    answer = TestClient(proxy).get("/", headers=headers)
    [request_id] = answer.headers.get_list("x-request-id")
    assert [request_id.encode()] == forwarded_ids
    assert (request_id == sent) == (sent in LEGAL)


def test_two_ids_are_replaced_by_one(client: TestClient, lines: Lines) -> None:
    answer = client.get("/livez", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert answer.headers["x-request-id"] not in ("a", "b", "a, b")
    assert answer.headers["x-request-id"] == lines.last()["id"]
    assert json.dumps(lines.last())
