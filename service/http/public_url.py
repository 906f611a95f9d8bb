"""The URL at which a caller reaches the service, for links to it.

A caller's own headers say what only that caller gets to see: they change no other answer, and nothing is
fetched from the URL. They are still held to the form of a host and a path, so that a link is a link.
"""

import re

from starlette.requests import Request

from safelight.service.settings import Settings

HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
MAX_CHARACTERS = 255
SCHEMES = ("http", "https")


def base_url(request: Request, settings: Settings) -> str:
    """The URL in front of the service's paths, without a slash at its end.

    It is the setting `public_url`, else what the proxies in front say in `X-Forwarded-Proto` and `-Host`,
    else what the request says.
    """
    if settings.public_url:
        return settings.public_url
    scheme = _first(request, "x-forwarded-proto").lower()
    if scheme not in SCHEMES:
        scheme = "https" if request.url.scheme == "https" else "http"
    for header in ("x-forwarded-host", "host"):
        host = _first(request, header)
        if len(host) <= MAX_CHARACTERS and HOST.fullmatch(host):
            break
    else:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = f"{host}:{settings.port}"
    return f"{scheme}://{host}{_prefix(request)}"


def _prefix(request: Request) -> str:
    """The path in front of the service's own, of `root_path` or `X-Forwarded-Prefix`."""
    path = str(request.scope.get("root_path", "")).rstrip("/")
    is_path = len(path) <= MAX_CHARACTERS and PREFIX.fullmatch(path) and ".." not in path.split("/")
    return path if is_path else ""


def _first(request: Request, header: str) -> str:
    """The first value of a header: of a chain of proxies, that of the one next to the caller."""
    return request.headers.get(header, "").partition(",")[0].strip()
