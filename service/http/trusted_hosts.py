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
from safelight.service.setting_types import names_in
from safelight.service.settings import Settings

# Names that public DNS never resolves (RFC 6761, RFC 6762, ICANN 2024), and those of Kubernetes' Services.
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa", ".svc")
SENTENCE = (
    "This route is not open to the host of the request; the setting trusted_hosts lists further names at "
    "which callers reach the service, and public_url has one."
)


class TrustedHosts:
    """The hosts that requests may name."""

    def __init__(self, settings: Settings):
        self._names = {settings.host.lower(), socket.gethostname().lower()}
        self._names.update(name.lower() for name in names_in(settings.trusted_hosts))
        if settings.public_url:
            self._names.add((urlsplit(settings.public_url).hostname or "").lower())

    def check_host(self, request: Request) -> None:
        """Raise `UntrustedHost` unless the request names one host, and that is trusted."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_trusted(f"//{hosts[0]}"):
            raise UntrustedHost(SENTENCE)

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
