"""One HTTP request to an ASGI app, message by message, for clients that are slow or go away."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from tests.service.conftest import ROUTE

Message = MutableMapping[str, Any]
Pause = Callable[[], Awaitable[None]]


class AsgiClient:
    """A request for images whose client sends its body in `chunks`, and can disconnect.

    Args:
        chunks: The body's parts, each sent after `pause`.
        is_whole: Whether the last of them ends the body; else the client sends nothing more.
        pause: Awaited before each chunk.
    """

    def __init__(self, *chunks: bytes, is_whole: bool = True, pause: Pause | None = None) -> None:
        self.disconnected = asyncio.Event()
        self.sent: list[Message] = []
        self.scope = _scope()
        self._chunks: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
        ]
        if is_whole:
            self._chunks[-1]["more_body"] = False
        self._pause = pause

    @classmethod
    def of(cls, body: object) -> "AsgiClient":
        """A client that sends `body` as JSON, at once."""
        return cls(json.dumps(body).encode())

    async def call(self, app: Callable[..., Awaitable[None]]) -> None:
        """Send the request to `app`; returns when it is answered."""
        await app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self._chunks:
            if self._pause is not None:
                await self._pause()
            return self._chunks.pop(0)
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        headers: Iterable[tuple[bytes, bytes]] = self.sent[0]["headers"]
        return {name.decode(): value.decode() for name, value in headers}

    @property
    def json(self) -> Any:
        return json.loads(self.sent[1]["body"])


def _scope() -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": ROUTE,
        "raw_path": ROUTE.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", b"gateway"), (b"content-type", b"application/json")],
    }
