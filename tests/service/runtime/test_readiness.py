"""The question whether a service is ready."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from safelight.service.runtime.addresses import Address, find_address
from safelight.service.runtime.readiness import ask_readiness, read_answer


def report(**fields: object) -> str:
    stages = {"encode": {"ready": True}, "denoise": {"ready": False}}
    return json.dumps({"ready": False, "stages": stages, "reason": None, "failed": False} | fields)


@pytest.mark.parametrize(
    ("status", "body", "is_final", "text"),
    [
        (503, report(reason="no image", failed=True), True, "no image"),
        (503, report(reason="lost"), False, "lost"),
        (503, report(), False, "no denoise"),
        (503, report(stages={}), False, "no warm-up image yet"),
        (503, "Route table is not populated yet.", False, "status 503: Route table is not populated yet."),
        (502, "[]", False, "status 502: []"),
    ],
)
def test_an_answer_says_whether_to_wait(status: int, body: str, is_final: bool, text: str) -> None:
    answer = read_answer(status, body)
    assert (answer.is_ready, answer.is_final, answer.text, answer.is_reached) == (False, is_final, text, True)


class Ready(BaseHTTPRequestHandler):
    """Answers /readyz only."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server6(HTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture(params=["127.0.0.1", "::1"])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    if request.param == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with (Server6 if request.param == "::1" else HTTPServer)((request.param, 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield find_address(request.param, server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_service_is_asked_at_its_address_and_never_by_a_proxy(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask_readiness(address).is_ready


def test_a_service_that_does_not_listen_or_not_answer_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = find_address("127.0.0.1", silent.getsockname()[1])
        slow = ask_readiness(address, seconds=0.05)
    refused = ask_readiness(address)
    for answer in (slow, refused):
        assert (answer.is_ready, answer.is_final, answer.is_reached) == (False, False, False)
        assert answer.text.startswith(f"no answer from http://127.0.0.1:{address.port}: ")
