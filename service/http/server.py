"""Serves an ASGI app on a listening socket, in an event loop that runs other things as well."""

import asyncio
import socket
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from safelight.service.http.connections import BoundedConnection, ConnectionLimits

KEEP_ALIVE_SECONDS = 90  # for which an idle connection stays open; longer than load balancers keep theirs


class HttpServer:
    """A server of one app, which has started and not ended."""

    def __init__(self, server: uvicorn.Server, task: "asyncio.Task[None]"):
        self._server = server
        self._task = task

    @property
    def requests_in_flight(self) -> int:
        return len(self._server.server_state.tasks)

    async def stop(self, seconds: float) -> None:
        """Take no further connection, and cancel requests that are not answered within `seconds`."""
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        await self._task


async def start_http_server(app: ASGIApp, listener: socket.socket, limits: ConnectionLimits) -> HttpServer:
    """Serve `app` to the connections of `listener`, within `limits`; returns when it can be reached."""
    server = _Server(make_config(app, limits, lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if task.done():
        task.result()
    return HttpServer(server, task)


def make_config(app: ASGIApp, limits: ConnectionLimits, **options: Any) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    return uvicorn.Config(
        app,
        http=cast(Any, partial(BoundedConnection, limits)),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        **options,
    )


class _Server(uvicorn.Server):
    """uvicorn's server with an event for its start, which leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    def capture_signals(self) -> "AbstractContextManager[None]":  # type: ignore[override]
        return nullcontext()
