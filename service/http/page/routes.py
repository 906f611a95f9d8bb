"""Serves the page at `/` and its files under `/page/`.

Addresses in the files are relative, so that the page works under any prefix of a proxy.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

FILES = Path(__file__).parent / "files"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page loads and calls this service alone, and holds no inline code or style. `blob:` and `data:` are the
# images that it was sent.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "cache-control": "no-cache",  # a copy is used after the entity tag was compared: 304 without a body
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page; its entity tag is that of its content, so that all gateways send the same."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "PageFile":
        content = path.read_bytes()
        return cls(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    async def respond(self, request: Request) -> Response:
        """The file, or 304 if the client's copy is the same."""
        headers = HEADERS | {"etag": self.etag}
        copies = request.headers.get("if-none-match", "").split(",")
        if self.etag in (copy.strip().removeprefix("W/") for copy in copies):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def add_page_routes(app: FastAPI) -> None:
    """Add `GET` and `HEAD` of `/` and of each file; they are no part of the OpenAPI schema."""
    for path in sorted(FILES.iterdir()):
        file = PageFile.read(path)
        address = "/" if path.name == INDEX else f"/page/{path.name}"
        app.add_route(address, _endpoint(file), methods=["GET"], include_in_schema=False)


def _endpoint(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def get_file(request: Request) -> Response:
        return await file.respond(request)

    return get_file
