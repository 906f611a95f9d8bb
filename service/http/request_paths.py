"""Paths and methods as clients and proxies write them: a prefix, slashes too many, HEAD."""

import re

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.service.setting_types import ROOT_PATH

FORWARDED_PREFIX = "x-forwarded-prefix"
_SLASHES = re.compile(r"/{2,}")


class RequestPaths:
    """Middleware that gives routes the path without a prefix and without slashes too many, and HEAD as GET.

    Args:
        app: The application.
        root_path: The prefix under which a proxy serves it; empty for what the proxy says in a header.
    """

    def __init__(self, app: ASGIApp, root_path: str):
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        prefix = self.root_path or _forwarded_prefix(scope)
        if prefix and scope["path"] == prefix:  # the page's addresses are relative to the path with a slash
            return await RedirectResponse(f"{prefix}/")(scope, receive, send)
        root_path, path = _paths(scope, prefix)
        scope = {**scope, "root_path": root_path, "path": path}
        if scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


def _paths(scope: Scope, prefix: str) -> tuple[str, str]:
    """The path of the application, and the whole path, which starts with it as ASGI has it."""
    path = _SLASHES.sub("/", scope["path"])
    if not path.startswith(f"{prefix}/"):
        path = prefix + path
    root_path = prefix + scope.get("root_path", "").rstrip("/")
    return root_path, path.rstrip("/") if path.rstrip("/") != root_path else f"{root_path}/"


def _forwarded_prefix(scope: Scope) -> str:
    """What a proxy says that it has taken away, if that is a path."""
    prefix = Headers(scope=scope).get(FORWARDED_PREFIX, "").rstrip("/")
    return prefix if ROOT_PATH.fullmatch(prefix) else ""
