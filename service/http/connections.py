"""Connections of clients that are slow, silent or endless: each costs a bounded time and memory."""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from safelight.service.errors import ServiceError
from safelight.service.settings import Settings

logger = logging.getLogger(__name__)

BODY_GRACE_SECONDS = 5.0  # the app itself answers a body that is too slow, after `body_seconds`
MAX_OVERHEAD = 8  # bytes received for one of a body, in chunks of which each has its length before it


class HttpRefused(ServiceError):
    """What a connection is answered that sends no proper request."""

    type = "invalid_request_error"
    retry_after = None
    should_retry = False


class InvalidHttp(HttpRefused):
    status = 400
    code = "invalid_http"
    message = "The request is not valid HTTP."


class HeadersTooSlow(HttpRefused):
    status = 408
    code = "request_timeout"
    should_retry = True


class HeadersTooLarge(HttpRefused):
    status = 431
    code = "headers_too_large"


class TooManyConnections(ServiceError):
    status = 503
    code = "too_many_connections"
    message = "Too many connections are open; please try again later."
    retry_after = 2


@dataclass(frozen=True)
class ConnectionLimits:
    """What one client, and all of them together, may take of a server.

    Attributes:
        max_connections: Open at a time.
        header_seconds: In which the line and the headers of a request must arrive.
        max_header_bytes: Of the line and the headers.
        body_seconds: In which its body must arrive.
        send_seconds: In which a client that is sent an answer must take a part of it.
    """

    max_connections: int
    header_seconds: float
    max_header_bytes: int
    body_seconds: float
    send_seconds: float


def limits_of(settings: Settings) -> ConnectionLimits:
    """The limits that the settings say."""
    return ConnectionLimits(
        settings.max_connections,
        settings.header_seconds,
        settings.max_header_bytes,
        settings.body_seconds + BODY_GRACE_SECONDS,
        settings.send_seconds,
    )


class BoundedConnection(HttpToolsProtocol):
    """A connection that is refused or ended when it exceeds a limit.

    uvicorn limits none of this: it waits for ever for headers of any size, and for a client that reads
    nothing of its answer.
    """

    def __init__(self, limits: ConnectionLimits, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._limits = limits
        self._arrival: asyncio.TimerHandle | None = None  # ends the wait for headers or for a body
        self._sending: asyncio.TimerHandle | None = None  # while the client takes nothing
        self._is_in_headers = True
        self._num_messages = 0
        self._overhead = 0  # bytes of the message that are not, or hardly, of its body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(TooManyConnections())
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        num_messages = self._num_messages
        super().data_received(data)
        if self._num_messages == num_messages:  # else a part of `data` belongs to the message before
            self._overhead += len(data)
            self._check_overhead(self._overhead)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_messages += 1
        self._is_in_headers, self._overhead = True, 0
        self._expect_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_headers:  # and not in the trailers, which nothing reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self.transport.is_closing() or not self._check_overhead(size):
            return
        self._is_in_headers = False
        self._start_arrival(self._limits.body_seconds, self._abort)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # what nothing reads any more is thrown away as long as that is cheap
        self._overhead -= len(body) * (1 if self.cycle.response_complete else MAX_OVERHEAD)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        if not self.transport.is_closing():
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidHttp())

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a request for a WebSocket is answered as any other, and is not worth two warnings."""

    def _expect_headers(self) -> None:
        """Begin to wait for headers; those of a connection's first request are waited for already."""
        if self._arrival is None:
            self._start_arrival(self._limits.header_seconds, self._refuse_slow_headers)

    def _start_arrival(self, seconds: float, end: Callable[[], None]) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
        self._arrival = self.loop.call_later(seconds, end)

    def _refuse_slow_headers(self) -> None:
        if self._num_messages == 0 and not self._overhead:  # opened in advance: there is nothing to answer
            self._abort()
            return
        seconds = self._limits.header_seconds
        self._refuse(HeadersTooSlow(f"The headers did not arrive within {seconds:g} seconds."))

    def _check_overhead(self, size: int) -> bool:
        """Whether headers and trailers of `size` are allowed; the connection ends if not."""
        limit = self._limits.max_header_bytes
        if size > limit and not self.transport.is_closing():
            self._refuse(HeadersTooLarge(f"The headers are larger than {limit} bytes."))
        return size <= limit

    def _refuse(self, error: ServiceError) -> None:
        """Answer with `error` and end the connection; without an answer if another one has begun."""
        self._cancel_timers()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or self.pipeline:
                self._abort()
                return
            self.cycle.disconnected = True  # what the app answers yet is not sent
        elif self.cycle is not None and not self._is_in_headers:  # of a request that has been answered
            self._abort()
            return
        logger.warning("connection refused: %s", error.code)
        self.transport.write(_answer(error))
        self.transport.close()

    def _watch_sending(self, size: int) -> None:
        """End the connection if a while from now its client has taken nothing of `size` bytes."""
        self._sending = self.loop.call_later(self._limits.send_seconds, self._check_sending, size)

    def _check_sending(self, previous: int) -> None:
        if (size := self.transport.get_write_buffer_size()) < previous:
            self._watch_sending(size)
        else:
            self._abort()

    def _abort(self) -> None:
        self._cancel_timers()
        self.transport.abort()

    def _cancel_timers(self) -> None:
        for timer in (self._arrival, self._sending):
            if timer is not None:
                timer.cancel()
        self._arrival = self._sending = None


def _answer(error: ServiceError) -> bytes:
    """The bytes of an answer that no app gives."""
    request_id = secrets.token_hex(16)
    body = json.dumps({**error.body(), "request_id": request_id}).encode("ascii")
    headers = {
        "x-request-id": request_id,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode("ascii") + b"\r\n" + body
