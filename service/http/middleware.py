"""What every response has: a request id, its processing time, and OpenAI's error object if it is an error."""

import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.service.errors import ServiceError, as_service_error

logger = logging.getLogger(__name__)

VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Envelope:
    """The outermost middleware: identifies and times each request, and turns exceptions into error responses.

    Serve's proxy adds the header `x-request-id` to each response itself; with `proxied` it is not added a
    second time.
    """

    def __init__(self, app: ASGIApp, proxied: bool):
        self.app = app
        self.proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                if not self.proxied:
                    headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - started)))
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if not is_started:
                await error_response(as_service_error(error))(scope, receive, send_with_headers)


def choose_request_id(client_id: str | None) -> str:
    """The client's id if it is short and of harmless characters, else a random one."""
    return client_id if client_id and VALID_ID.fullmatch(client_id) else uuid.uuid4().hex


def error_response(error: ServiceError) -> Response:
    """`error` as a JSON response with its status and headers."""
    # ASCII: a message may quote a client's text, which may hold lone surrogates that UTF-8 cannot encode.
    body = json.dumps(error.body()).encode("ascii")
    return Response(body, error.status, headers=error.headers, media_type="application/json")
