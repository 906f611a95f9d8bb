"""What every response has: a request id, its processing time, and OpenAI's error object if it is an error."""

import asyncio
import json
import time

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.service.errors import ServiceError, as_service_error
from safelight.service.http.caller import CALLER
from safelight.service.http.limit_headers import limit_headers
from safelight.service.http.request_ids import HEADER, choose_request_id
from safelight.service.http.request_log import CLIENT_GONE, describe_error, start_log, write_line


class Envelope:
    """The outermost middleware: identifies and times each request, and turns exceptions into error responses.

    It writes the request's line into the log. Serve's proxy adds the header `x-request-id` to each response
    itself; with `proxied` it is not added a second time.
    """

    def __init__(self, app: ASGIApp, proxied: bool):
        self.app = app
        self.proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        request_id = choose_request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        fields = start_log(scope)
        status = 0  # until the answer starts

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if not self.proxied:
                    headers[HEADER] = request_id
                if caller := scope["state"].get(CALLER):
                    headers.update(limit_headers(caller.statuses))
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - started)))
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            status = status or CLIENT_GONE
            raise
        except Exception as error:
            answer = as_service_error(error)
            fields |= describe_error(error, answer)
            if not status:
                await error_response(answer, request_id)(scope, receive, send_with_headers)
        finally:
            write_line(scope, status, time.perf_counter() - started, fields)


def error_response(error: ServiceError, request_id: str) -> Response:
    """`error` as a JSON response with its status and headers; the request's id is beside the error object."""
    # ASCII: a message may quote a client's text, which may hold lone surrogates that UTF-8 cannot encode.
    body = json.dumps({**error.body(), "request_id": request_id}).encode("ascii")
    return Response(body, error.status, headers=error.headers, media_type="application/json")
