"""What every answer has in common, whatever route it comes from: an id, its time, and OpenAI's error object."""

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

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Envelope:
    """Outermost: names the request, times it, and turns whatever escapes into an answer.

    Serve's proxy writes the request's id into every answer itself, and would write it beside ours: `proxied` leaves it to it.
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
        answered = False

        async def send_named(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = MutableHeaders(scope=message)
                if not self.proxied:
                    headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - started)))
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if not answered:
                await error_response(as_service_error(error))(scope, receive, send_named)


def choose_request_id(given: str | None) -> str:
    """The client's id if it is sane, else a fresh one."""
    return given if given and SANE_ID.fullmatch(given) else uuid.uuid4().hex


def error_response(error: ServiceError) -> Response:
    # ASCII, because a message may quote a client's text, and not every text can be written in UTF-8
    body = json.dumps(error.body()).encode("ascii")
    return Response(body, error.status, headers=error.headers, media_type="application/json")
