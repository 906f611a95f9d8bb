"""One id for each request, in the answer, the logs, the accounting, the traces and Ray Serve.

A client's `X-Request-ID` is used if it is legal: 1 to 128 characters of letters, digits and `. _ : -`. Any
other is replaced by a random one, everywhere.
"""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
LEGAL_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Middleware that gives a request its id before anything reads it, and the answer the same one, once."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = choose_request_id(scope)
        MutableHeaders(scope=scope)[HEADER] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = (pair for pair in message["headers"] if pair[0].lower() != HEADER.encode())
                message["headers"] = [*others, (HEADER.encode(), request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)


def proxy_middlewares() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`: Serve's proxy puts them in front of its own."""
    return [Middleware(RequestIds)]


def choose_request_id(scope: Scope) -> str:
    """The id that the client has sent, if it sent one and that is legal, else a random one."""
    ids = Headers(scope=scope).getlist(HEADER)
    return ids[0] if len(ids) == 1 and LEGAL_ID.fullmatch(ids[0]) else uuid.uuid4().hex
