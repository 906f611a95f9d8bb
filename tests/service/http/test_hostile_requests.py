"""Hostile requests over a real socket: each has its documented answer, and none leaves anything behind."""

import http.client
import json
import logging
import tracemalloc
from collections.abc import Iterator

import pytest

from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from safelight.service.telemetry.logs import JsonFormatter, TextFormatter
from tests.fakes import MODEL, FakeBackend
from tests.service.http.hostile_requests import REQUESTS, HostileRequest
from tests.service.http_server import TestServer, running_server

MAX_GROWTH = 4 << 20  # bytes of Python's objects after all of them


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with running_server(build_gateway(FakeBackend(), MODEL, Settings())) as server:
        yield server


def answer(server: TestServer, request: HostileRequest) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30.0)
    try:
        connection.putrequest(request.method, request.path, skip_host="host" in request.headers)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        if request.method not in ("GET", "TRACE"):
            connection.putheader("content-length", str(len(request.body)))
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_has_its_documented_answer(server: TestServer, name: str) -> None:
    request = REQUESTS[name]
    status, headers, body = answer(server, request)
    assert status == request.status, body[:500]
    if status >= 400 and "/sdapi" not in request.path:
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
        assert len(body) < 4096
    assert headers.get("set-cookie") is None and b"root:" not in body


def test_none_of_them_forges_a_log_line(server: TestServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "safelight")
    for request in REQUESTS.values():
        answer(server, request)
    records = [record for record in caplog.records if record.name.startswith("safelight")]
    lines = [
        formatter.format(record) for record in records for formatter in (TextFormatter(), JsonFormatter())
    ]
    assert len(records) >= len(REQUESTS) - 1  # the line of the last is written after its answer
    assert [line for line in lines if not (line.isascii() and line.isprintable())] == []
    assert [line for line in lines if line.startswith("2026-11-30 INFO request id=forged")] == []


def test_there_are_a_hundred_of_them() -> None:
    assert len(REQUESTS) >= 100


def test_memory_is_flat(server: TestServer) -> None:
    for request in REQUESTS.values():
        answer(server, request)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for request in REQUESTS.values():
            answer(server, request)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < MAX_GROWTH
