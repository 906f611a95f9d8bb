"""Which hosts a browser's request may name: protection from DNS rebinding.

A web page can have a browser send requests to this service under a name of the page's own, which it lets
resolve to an address of the service. Such a name is one of the public DNS. Addresses, names that public DNS
does not have, and the names of the operator's are trusted.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.requests import Request

from safelight.service.errors import UntrustedHost
from safelight.service.settings import Settings

# Names that public DNS never resolves (RFC 6761, RFC 6762, ICANN 2024), and those of Kubernetes' Services.
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa", ".svc")


class TrustedHosts:
    """The hosts and origins that requests may name."""

    def __init__(self, settings: Settings):
        self._names = {settings.host.lower(), socket.gethostname().lower()}
        if settings.public_url:
            self._names.add((urlsplit(settings.public_url).hostname or "").lower())

    def check(self, request: Request) -> None:
        """Raise `UntrustedHost` if the request names another host, or comes from a page of another."""
        for header, url in (
            ("host", f"//{request.headers.get('host', '')}"),
            ("origin", request.headers.get("origin")),
        ):
            if url is not None and not self._is_trusted(url):
                raise UntrustedHost(
                    f"This route is not open to the {header} of the request; the setting public_url names "
                    "the host at which callers reach the service."
                )

    def _is_trusted(self, url: str) -> bool:
        try:
            name = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        if not name:
            return False
        return name in self._names or _is_address(name) or "." not in name or name.endswith(LOCAL_ENDINGS)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
