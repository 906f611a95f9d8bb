"""Refuses what a page of another origin has its visitor's browser send.

Browsers say in `Origin` and `Sec-Fetch-Site` which page sends a request. Other clients send neither.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from safelight.service.errors import CrossSite

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OWN_SITES = ("same-origin", "none")  # the service's own page; the person, in the address bar
# Nobody can have a browser send these from another origin without being allowed to by CORS.
HOST_HEADERS = ("host", "x-forwarded-host")


def check_site(request: Request, allowed_origins: Sequence[str]) -> None:
    """Raise `CrossSite` for a request that changes or costs something and that a page of another origin sent.

    Args:
        request: The request.
        allowed_origins: Origins whose pages may send it; `*` for all.
    """
    if request.method in SAFE_METHODS or "*" in allowed_origins:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site in OWN_SITES or (site is None and origin is None):
        return
    if origin is None or not (origin in allowed_origins or _is_own(origin, request)):
        raise CrossSite()


def _is_own(origin: str, request: Request) -> bool:
    """Whether the origin is that of the service, as the browser or a proxy in front names it."""
    if request.headers.get("sec-fetch-site") is not None:  # which has said that it is not
        return False
    try:
        host = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    names = (request.headers.get(header, "").partition(",")[0].strip() for header in HOST_HEADERS)
    return bool(host) and host in {name.lower() for name in names if name}
