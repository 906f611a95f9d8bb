"""The address on which HTTP is served: found from a host's name, kept free for the server, made a URL."""

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

ALL_INTERFACES = "0.0.0.0"
WILDCARDS = {ALL_INTERFACES: "127.0.0.1", "::": "::1"}  # with the address at which this machine reaches them


class BadAddress(ValueError):
    """Nothing can listen on an address; the message says why."""


@dataclass(frozen=True)
class Address:
    """An IP address and a TCP port on which a server listens, or will."""

    host: str
    port: int
    family: socket.AddressFamily = socket.AF_INET

    @property
    def reachable_host(self) -> str:
        """The IP address at which this machine reaches the server."""
        return WILDCARDS.get(self.host, self.host)

    @property
    def url(self) -> str:
        """The URL at which this machine reaches the server."""
        host = self.reachable_host
        return (
            f"http://[{host.replace('%', '%25')}]:{self.port}"
            if ":" in host
            else f"http://{host}:{self.port}"
        )


def find_address(host: str, port: int) -> Address:
    """The address of `host`: an IP address, with or without brackets, or a name.

    A name that has addresses of both families gets one of IPv4. An empty host means all interfaces of IPv4.

    Raises:
        BadAddress: The host has no address.
    """
    name = host.strip().removeprefix("[").removesuffix("]") or ALL_INTERFACES
    try:
        entries = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadAddress(f"cannot listen on {host}: {reason}; choose another with --host") from None
    families = (socket.AF_INET, socket.AF_INET6)
    usable = [entry for entry in entries if entry[0] in families]
    if not usable:
        raise BadAddress(f"cannot listen on {host}: it has no IP address; choose another with --host")
    family, *_, address = min(usable, key=lambda entry: families.index(entry[0]))
    return Address(_with_scope(str(address[0]), address), port, family)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an IP address or a name; of names `localhost` is known."""
    name = host.strip().removeprefix("[").removesuffix("]").lower()
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


@dataclass(frozen=True)
class BoundAddress:
    """An address with a socket that is bound to it and does not listen yet."""

    address: Address
    listener: socket.socket


@contextmanager
def bound(address: Address) -> Iterator[BoundAddress]:
    """Keep the address until the block ends; a port of 0 becomes a free one.

    No other program gets the port meanwhile: not one that asks for it, and not one that the kernel gives any
    free port, as it does the processes of Ray.

    Raises:
        BadAddress: Another program has the port, or the address cannot be used.
    """
    with socket.socket(address.family, socket.SOCK_STREAM) as listener:
        try:
            _bind(listener, address)
        except OSError as error:
            raise BadAddress(_refusal(address, error)) from None
        yield BoundAddress(replace(address, port=int(listener.getsockname()[1])), listener)


def _bind(holder: socket.socket, address: Address) -> None:
    try:
        holder.bind((address.host, address.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Connections of a service that has ended may linger for a minute; they do not keep a server away.
        with socket.socket(address.family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address.host, address.port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _refusal(address: Address, error: OSError) -> str:
    flag = "--host" if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) else "--port"
    reason = error.strerror or error
    return f"cannot listen on port {address.port} of {address.host}: {reason}; choose another with {flag}"


def _with_scope(host: str, address: tuple[object, ...]) -> str:
    """A link-local address of IPv6 with its interface, without which nothing can listen on it."""
    scope = address[3] if len(address) == 4 else 0
    if not scope or "%" in host or not ipaddress.ip_address(host).is_link_local:
        return host
    return f"{host}%{socket.if_indextoname(int(str(scope)))}"
