"""The server of a gateway: when it can be reached, and what its end does to requests in flight."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from safelight.service.http.connections import limits_of
from safelight.service.http.server import HttpServer, start_http_server
from safelight.service.runtime.addresses import bound, find_address
from safelight.service.settings import Settings


class SlowApp:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.has_request, self.may_answer = asyncio.Event(), asyncio.Event()
        self.is_cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.has_request.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture
async def app() -> SlowApp:
    return SlowApp()


@pytest.fixture
async def served(app: SlowApp) -> AsyncIterator[tuple[HttpServer, httpx2.AsyncClient]]:
    with bound(find_address("127.0.0.1", 0)) as at:
        server = await start_http_server(app, at.listener.dup(), limits_of(Settings()))
        async with httpx2.AsyncClient(base_url=at.address.url, timeout=30.0) as client:
            yield server, client
        await server.stop(1.0)


async def test_a_request_in_flight_is_answered_before_the_end(
    app: SlowApp, served: tuple[HttpServer, httpx2.AsyncClient]
) -> None:
    server, client = served
    request = asyncio.create_task(client.get("/"))
    await app.has_request.wait()
    assert server.requests_in_flight == 1
    stop = asyncio.create_task(server.stop(30.0))
    await asyncio.wait([stop], timeout=0.3)  # it has closed its socket by then
    app.may_answer.set()
    assert (await request).text == "done"
    await stop
    assert (server.requests_in_flight, app.is_cancelled) == (0, False)


async def test_a_request_that_is_not_answered_in_time_is_cancelled(
    app: SlowApp, served: tuple[HttpServer, httpx2.AsyncClient]
) -> None:
    server, client = served
    request = asyncio.create_task(client.get("/"))
    await app.has_request.wait()
    await server.stop(1.0)
    assert (await request).status_code == 500
    assert app.is_cancelled
