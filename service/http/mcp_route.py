"""The route `/mcp`, if the extra `mcp` is installed."""

from contextlib import AbstractAsyncContextManager, nullcontext
from importlib.util import find_spec
from typing import Protocol

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from safelight.service.http.gateway_parts import Gateway

PATH = "/mcp"


class Endpoint(Protocol):
    """An ASGI app that answers while its context is open."""

    def run(self) -> AbstractAsyncContextManager[None]: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def make_mcp_endpoint(gateway: Gateway) -> Endpoint | None:
    """What answers at `/mcp`; None without the library."""
    if find_spec("mcp") is None:
        return None
    from safelight.service.http.mcp_server import McpEndpoint

    return McpEndpoint(gateway)


def add_mcp_route(app: FastAPI, endpoint: Endpoint | None) -> None:
    """Add the route. GET and DELETE belong to sessions, which there are none of: they are 405."""
    if endpoint is not None:
        app.router.routes.append(Route(PATH, endpoint, methods=["POST"]))


def running(endpoint: Endpoint | None) -> AbstractAsyncContextManager[None]:
    """The context in which the endpoint answers."""
    return nullcontext() if endpoint is None else endpoint.run()
