"""Hostile clients on real sockets: each is answered and let go as documented, and costs nothing for long."""

import asyncio
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest
from uvicorn.server import ServerState

from safelight.service.http.connections import (
    BODY_GRACE_SECONDS,
    BoundedConnection,
    ConnectionLimits,
    limits_of,
)
from safelight.service.http.gateway import build_gateway
from safelight.service.http.server import make_config
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.http.hostile_clients import (
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
from tests.virtual_time import run_in_virtual_time

# Of a server that clients wait for, and of one whose clients are quick, on a machine that may be busy.
SLOW_SETTINGS = Settings(body_seconds=0.3, max_body_bytes=1 << 16)
SETTINGS = Settings(body_seconds=10.0, max_body_bytes=1 << 16)
SLOW_LIMITS = ConnectionLimits(
    max_connections=20, header_seconds=0.5, max_header_bytes=1 << 14, body_seconds=0.8, send_seconds=0.3
)
LIMITS = replace(SLOW_LIMITS, header_seconds=10.0, body_seconds=3.0)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
MAX_GROWTH = 2 << 20  # bytes of Python's objects after all clients have come and gone
MAX_PEAK = 8 << 20  # while they are there


@pytest.fixture(scope="module")
def slow_server() -> Iterator[TestServer]:
    app = build_gateway(FakeBackend(), MODEL, SLOW_SETTINGS)
    with running_server(app, SLOW_LIMITS) as server:
        yield server


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


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def wait_for_connections(server: TestServer, number: int) -> None:
    """Wait until the server has `number` connections."""
    give_up = time.monotonic() + 30.0
    while len(server.server_state.connections) != number and time.monotonic() < give_up:
        time.sleep(0.01)
    assert len(server.server_state.connections) == number


@pytest.mark.parametrize("name", CLIENTS)
def test_a_hostile_client_is_answered_and_let_go(
    slow_server: TestServer, server: TestServer, name: str
) -> None:
    client = CLIENTS[name]
    server = slow_server if name in SLOW else server
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


def test_more_connections_than_there_may_be_are_refused_and_the_others_stay(server: TestServer) -> None:
    wait_for_connections(server, 0)
    connections = []
    for number in range(1, LIMITS.max_connections + 1):
        connections.append(connect(server.port))
        connections[-1].sendall(get())  # idle from then on, so that no time for headers runs
        wait_for_connections(server, number)
    with connect(server.port) as further:
        answer = read_all(further)
    assert answer.startswith(b"HTTP/1.1 503") and b"too_many_connections" in answer
    assert b"retry-after: 2" in answer
    for connection in connections:
        connection.sendall(get(b"Connection: close"))
        answers = read_all(connection)
        assert STATUS.findall(answers) == [b"200", b"200"]
        connection.close()
    wait_for_connections(server, 0)


def test_a_client_that_reads_nothing_is_let_go(server: TestServer) -> None:
    wait_for_connections(server, 0)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(get().replace(b"/livez", b"/openapi.json") * 400)
        wait_for_connections(server, 1)
        wait_for_connections(server, 0)


class SlowTransport(asyncio.Transport):
    """A connection of whose answer the client takes a part a second, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False
        self._sizes = [100, 90, 80, 70, 70]

    def get_write_buffer_size(self) -> int:
        return self._sizes.pop(0)

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def test_a_client_that_reads_slowly_may_go_on_until_it_stops() -> None:
    async def read_slowly() -> list[bool]:
        limits = ConnectionLimits(1, 100.0, 100, 100.0, send_seconds=1.0)
        config = make_config(build_gateway(FakeBackend(), MODEL, SETTINGS), limits)
        transport = SlowTransport()
        connection = BoundedConnection(limits, config, ServerState(), {})
        connection.connection_made(transport)
        connection.pause_writing()
        ends = []
        for _ in range(4):
            await asyncio.sleep(1.05)
            ends.append(transport.is_aborted)
        return ends

    assert run_in_virtual_time(read_slowly()) == [False, False, False, True]


def test_a_hundred_clients_that_crash_leave_nothing(server: TestServer) -> None:
    for _ in range(100):
        connection = connect(server.port)
        connection.sendall(GET)
        reset(connection)
    wait_for_connections(server, 0)


def test_memory_is_flat(server: TestServer) -> None:
    clients = [*ENDLESS_CLIENTS.values(), *MALFORMED.values()]

    def converse_with_all() -> None:
        for client in clients:
            converse(server, client)
        wait_for_connections(server, 0)

    converse_with_all()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        converse_with_all()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < MAX_GROWTH
    assert peak - before < MAX_PEAK


def test_the_limits_are_those_of_the_settings() -> None:
    settings = Settings(
        max_connections=7, header_seconds=1.5, max_header_bytes=9, body_seconds=2.5, send_seconds=3.5
    )
    assert limits_of(settings) == ConnectionLimits(7, 1.5, 9, 2.5 + BODY_GRACE_SECONDS, 3.5)
