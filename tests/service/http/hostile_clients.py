"""Clients that hold a connection, flood it, or send what is not quite HTTP, and what each is answered."""

import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST
POST = b"POST /v1/images/generations HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
BODY = b'{"prompt": "p"}'
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
DRIP_SECONDS = 0.02  # between two parts of a client that is slow
BLOCK = 1 << 14
ENDLESS = 1 << 26  # bytes after which a client gives up that should have been stopped before
CLOSED = 0  # in place of a status: the connection is ended without an answer


@dataclass(frozen=True)
class HostileClient:
    """What a client sends, and the statuses that it is answered.

    Attributes:
        parts: Makes what it sends, part by part.
        statuses: Of the answers, in order; `CLOSED` if there is none.
        is_slow: Whether it pauses after each part.
        closes: Whether it says that nothing more comes, when it has sent all.
    """

    parts: Callable[[], Iterator[bytes]]
    statuses: tuple[int, ...]
    is_slow: bool = False
    closes: bool = False


def at_once(data: bytes, *statuses: int, closes: bool = False) -> HostileClient:
    return HostileClient(lambda: iter([data]), statuses, closes=closes)


def byte_by_byte(head: bytes, rest: bytes, *statuses: int) -> HostileClient:
    """A client that sends `head` at once, and `rest` slowly."""
    return HostileClient(
        lambda: itertools.chain([head], (bytes([byte]) for byte in rest)), statuses, is_slow=True
    )


def endless(head: bytes, part: bytes, *statuses: int) -> HostileClient:
    """A client that goes on with `part` until it is stopped."""
    block = part * (BLOCK // len(part))
    return HostileClient(
        lambda: itertools.chain([head], itertools.repeat(block, ENDLESS // len(block))), statuses
    )


def get(*headers: bytes) -> bytes:
    return GET + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# Each holds its connection as long as it is let.
SLOW = {
    "sends nothing": at_once(b"", CLOSED),
    "sends half of a request's line": at_once(b"GET /liv", 408),
    "speaks HTTP/0.9": at_once(b"GET /livez\r\n", 408),
    "sends no end of the headers": at_once(GET, 408),
    "sends headers byte by byte": byte_by_byte(GET, b"X: " + b"y" * 10_000, 408),
    "sends header after header": HostileClient(
        lambda: itertools.chain([GET], (b"X-%d: y\r\n" % k for k in range(10_000))), (408,), is_slow=True
    ),
    "sends line breaks for ever": HostileClient(lambda: itertools.repeat(b"\r\n", 10_000), (408,), True),
    "sends no body": at_once(POST + b"Content-Length: 100\r\n\r\n", 408),
    "sends a body byte by byte": byte_by_byte(POST + b"Content-Length: 10000\r\n\r\n", b" " * 10_000, 408),
    "sends chunks byte by byte": byte_by_byte(CHUNKED, chunk(b" ") * 10_000, 408),
    "waits to be told to continue": at_once(
        POST + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n", 100, 408
    ),
    "sends a body slowly to a route that reads none": byte_by_byte(
        GET + b"Content-Length: 10000\r\n\r\n", b" " * 10_000, 200
    ),
    "sends a body slowly to no route": byte_by_byte(
        POST.replace(b"/v1/images/generations", b"/nothing") + b"Content-Length: 10000\r\n\r\n",
        b" " * 10_000,
        404,
    ),
    "begins a second request and stops": at_once(get() + GET, 200, 408),
}
# Each sends as much as it is let.
ENDLESS_CLIENTS = {
    "sends a header without an end": endless(GET + b"X: ", b"y", 431),
    "sends headers without an end": endless(GET, b"X: y\r\n", 431),
    "sends a line without an end": endless(b"GET /", b"a", 431),
    "sends a header's name without an end": endless(GET, b"a", 431),
    "sends line breaks without an end": endless(b"", b"\r\n", 431),
    "sends ten thousand headers": at_once(get(*(b"X-%d: y" % k for k in range(10_000))), 431),
    "sends a query of 100 kB": at_once(b"GET /livez?" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
    "sends a body without an end": endless(CHUNKED, chunk(b" " * 4096), 413),
    "says that its body is huge": at_once(POST + b"Content-Length: 99999999999\r\n\r\n", 413),
    "sends a body without an end to no route": endless(
        b"POST /nothing HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b" " * 4096), 404
    ),
    "sends trailers without an end": endless(CHUNKED + chunk(BODY) + b"0\r\n", b"X: y\r\n", 431),
    "sends a trailer without an end": endless(CHUNKED + chunk(BODY) + b"0\r\nX: ", b"y", 431),
    "sends extensions of a chunk without an end": endless(CHUNKED + b"1;", b"a", 431),
    "sends tiny chunks without an end": endless(CHUNKED, chunk(b" " * 16), 413),
    "sends 500 requests at once": at_once(get() * 499 + get(b"Connection: close"), *[200] * 500),
}
# Each says something that two servers might read in two ways, or that is no HTTP.
MALFORMED = {
    "says the length and chunks": at_once(
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400
    ),
    "says chunks and the length": at_once(
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400
    ),
    "says two lengths": at_once(POST + b"Content-Length: 5\r\nContent-Length: 15\r\n\r\n" + BODY, 400),
    "says two lengths in one header": at_once(POST + b"Content-Length: 15, 15\r\n\r\n" + BODY, 400),
    "says a length with a sign": at_once(POST + b"Content-Length: +15\r\n\r\n" + BODY, 400),
    "says a negative length": at_once(POST + b"Content-Length: -1\r\n\r\n", 400),
    "says a length in hexadecimal": at_once(POST + b"Content-Length: 0xf\r\n\r\n" + BODY, 400),
    "says a length of forty digits": at_once(POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "says an unknown coding": at_once(POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "says chunks before another coding": at_once(
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400
    ),
    "hides the coding behind a tab": at_once(POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "sends a chunk of too large a size": at_once(CHUNKED + b"f" * 17 + b"\r\n", 400),
    "sends a chunk of a negative size": at_once(CHUNKED + b"-1\r\n\r\n", 400),
    "sends a chunk that is longer than it says": at_once(CHUNKED + b"1\r\nabc\r\n0\r\n\r\n", 400),
    "puts a space before the colon": at_once(get(b"Content-Length : 0"), 400),
    "continues a header in a second line": at_once(get(b"X: y\r\n z"), 400),
    "ends lines without a carriage return": at_once(b"GET /livez HTTP/1.1\nHost: a\n\n", 400),
    "puts a carriage return into a header": at_once(get(b"X: y\rZ: z"), 400),
    "puts a NUL into a header": at_once(get(b"X: \0"), 400),
    "puts a NUL into the path": at_once(b"GET /livez\0 HTTP/1.1\r\n\r\n", 400),
    "puts a space into the path": at_once(b"GET /live z HTTP/1.1\r\n\r\n", 400),
    "has no path": at_once(b"GET  HTTP/1.1\r\n\r\n", 400),
    "has an unknown method": at_once(b"DRAW /livez HTTP/1.1\r\n\r\n", 400),
    "has a version that is none": at_once(b"GET /livez HTTP/9.9\r\n\r\n", 400),
    "speaks HTTP/2": at_once(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "speaks TLS": at_once(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), 400),
    "speaks SMTP": at_once(b"EHLO example.org\r\n", 400),
    "speaks SSH": at_once(b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    "asks for a tunnel": at_once(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    "asks a proxy": at_once(b"GET http://example.org/livez HTTP/1.1\r\nHost: example.org\r\n\r\n", 200),
    "asks for the whole server": at_once(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "asks for a WebSocket": at_once(
        get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: a"), 200
    ),
    "asks for HTTP/2": at_once(get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), 200),
    "names no host": at_once(b"GET /livez HTTP/1.1\r\n\r\n", 200),
    "pipelines three requests": at_once(get() * 3, 200, 200, 200),
    "hides a request behind a body": at_once(WHOLE + get(), 200, 200),
    "closes its half within the headers": at_once(GET, CLOSED, closes=True),
    "closes its half within the body": at_once(
        POST + b"Content-Length: 100\r\n\r\n" + BODY, CLOSED, closes=True
    ),
    "closes its half and sends nothing": at_once(b"", CLOSED, closes=True),
}
CLIENTS = SLOW | ENDLESS_CLIENTS | MALFORMED


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 30.0)


def reset(connection: socket.socket) -> None:
    """End a connection as a client does that has crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
