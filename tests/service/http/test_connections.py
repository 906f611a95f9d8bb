"""Hostile clients on real sockets: each is answered and let go as documented, and costs nothing for long."""

import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import httpx2
import pytest

from safelight.service.http.connections import BODY_GRACE_SECONDS, ConnectionLimits, limits_of
from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.http.hostile_clients import (
    BODY,
    CLIENTS,
    CLOSED,
    DRIP_SECONDS,
    ENDLESS_CLIENTS,
    GET,
    MALFORMED,
    SLOW,
    HostileClient,
    connect,
    get,
    reset,
)
from tests.service.http_server import TestServer, running_server

SETTINGS = Settings(body_seconds=0.3, max_body_bytes=1 << 16)
LIMITS = ConnectionLimits(
    max_connections=20, header_seconds=0.5, max_header_bytes=1 << 14, body_seconds=0.8, send_seconds=0.3
)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
MAX_GROWTH = 4 << 20  # bytes of Python's objects after all clients have come and gone


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    app = build_gateway(FakeBackend(), MODEL, SETTINGS)
    with running_server(app, LIMITS) as server:
        yield server


def converse(server: TestServer, client: HostileClient) -> tuple[bytes, bool]:
    """What `client` is answered, and whether the connection was ended by the server."""
    with connect(server.port) as connection:
        stop = threading.Event()
        sender = threading.Thread(target=send_parts, args=(connection, client, stop))
        sender.start()
        answer = b""
        is_ended = False
        try:
            while part := connection.recv(1 << 16):
                answer += part
                if not ends_connection(client) and len(STATUS.findall(answer)) >= len(client.statuses):
                    break
            else:
                is_ended = True
        except ConnectionError:
            is_ended = True
        stop.set()
        sender.join()
    return answer, is_ended


def send_parts(connection: socket.socket, client: HostileClient, stop: threading.Event) -> None:
    try:
        for part in client.parts():
            connection.sendall(part)
            if stop.is_set() or client.is_slow and stop.wait(DRIP_SECONDS):
                return
        if client.closes:
            connection.shutdown(socket.SHUT_WR)
    except OSError:  # it was stopped
        pass


def ends_connection(client: HostileClient) -> bool:
    """Whether the server must end the connection: also after an answer if the client goes on."""
    return client not in MALFORMED.values() or client.statuses[-1] in (CLOSED, 400)


def wait_for(condition: "threading.Event | None", server: TestServer, number: int) -> None:
    """Wait until the server has `number` connections."""
    give_up = time.monotonic() + 30.0
    while len(server.server_state.connections) != number and time.monotonic() < give_up:
        time.sleep(0.01)
    assert len(server.server_state.connections) == number


@pytest.mark.parametrize("name", CLIENTS)
def test_a_hostile_client_is_answered_and_let_go(server: TestServer, name: str) -> None:
    client = CLIENTS[name]
    answer, is_ended = converse(server, client)
    assert tuple(map(int, STATUS.findall(answer))) == tuple(s for s in client.statuses if s != CLOSED)
    assert is_ended == ends_connection(client)
    if client.statuses[-1] >= 400:
        head, _, body = answer.rpartition(b"\r\n\r\n")
        assert b"application/json" in head and b'"error"' in body
    assert httpx2.get(f"http://127.0.0.1:{server.port}/livez").json() == {"alive": True}


def test_there_are_enough_hostile_clients() -> None:
    assert len(SLOW) + len(ENDLESS_CLIENTS) >= 20
    assert len(CLIENTS) == len(SLOW) + len(ENDLESS_CLIENTS) + len(MALFORMED)
