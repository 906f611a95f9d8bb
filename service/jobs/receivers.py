"""Which receivers of webhooks are allowed, and at which address one is reached.

An origin is allowed by the operator, by scheme, host and port. A host name is looked up at each attempt, and
the connection goes to an address that was checked: a name that leads into a private network leads nowhere.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from httpx2 import URL, InvalidURL

MAX_CHARACTERS = 2000
DEFAULT_PORTS = {"http": 80, "https": 443}


class BadReceiver(Exception):
    """A receiver that nothing is sent to; the message says why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the operator allows."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: URL) -> "Origin":
        return cls(url.scheme, url.host.lower(), url.port or DEFAULT_PORTS.get(url.scheme, 0))


def parse_receiver(text: str, allowed: Iterable[str]) -> URL:
    """The URL of a receiver. Raises `BadReceiver` unless it is one whose origin is in `allowed`."""
    if len(text) > MAX_CHARACTERS:
        raise BadReceiver(f"has more than {MAX_CHARACTERS:,} characters")
    try:
        url = URL(text)
    except (InvalidURL, ValueError):
        raise BadReceiver("is not a URL") from None
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise BadReceiver("must start with https:// or http:// and name a host")
    if url.userinfo:
        raise BadReceiver("must not hold a user or a password")
    if Origin.of(url) not in {Origin.of(URL(origin)) for origin in allowed}:
        raise BadReceiver("is not one of the origins that the operator allows (webhook_origins)")
    return url


async def find_address(url: URL) -> str:
    """An IP address at which the receiver is reached. Raises `BadReceiver`.

    An address that is written in the URL was allowed as it is by the operator. A name must have public
    addresses only: with one private address among others, who answers for the name could choose.
    """
    host = url.host
    if _parse_address(host) is not None:
        return host
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(
            host, url.port or DEFAULT_PORTS[url.scheme], type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise BadReceiver(f"{host} has no address: {error.strerror or error}") from None
    addresses = [str(entry[4][0]) for entry in entries]
    if not addresses:
        raise BadReceiver(f"{host} has no address")
    if not all(map(is_public, addresses)):
        raise BadReceiver(f"{host} has an address that is not public")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    parsed = _parse_address(address.partition("%")[0])
    if parsed is None:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        # addresses of IPv4 in other clothes lead where that address leads
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo and parsed.teredo[1])
        if inner or parsed in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(inner or ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
    return parsed.is_global and not parsed.is_multicast


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
