"""A gateway on a real socket in this process, for clients that speak HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port of the loopback while the block runs; yields its URL."""
    started = threading.Event()
    server = _Server(uvicorn.Config(app, port=0, log_config=None, ws="none"), started)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(60.0)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config, started: threading.Event) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self._started.set()
