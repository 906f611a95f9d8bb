"""A gateway on a real socket in this process, for clients that speak HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from safelight.service.http.connections import ConnectionLimits, limits_of
from safelight.service.http.server import make_config


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port of the loopback while the block runs; yields its URL."""
    with running_server(app) as server:
        yield f"http://127.0.0.1:{server.port}"


@contextmanager
def running_server(app: FastAPI, limits: ConnectionLimits | None = None) -> Iterator["TestServer"]:
    """Likewise; yields the server, which has `limits` or those that the app's settings say."""
    server = TestServer(make_config(app, limits or limits_of(app.state.gateway.settings), port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.started_event.wait(60.0)
        yield server
    finally:
        server.should_exit = True
        thread.join()


class TestServer(uvicorn.Server):
    """Tells when it listens, and on which port."""

    __test__ = False

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.started_event = threading.Event()

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.started_event.set()
