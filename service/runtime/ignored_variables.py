"""Environment variables that have the name of a setting and are not meant as one."""

import re
from collections.abc import Mapping

# The address of a Kubernetes Service, or of a linked Docker container, in a variable of its name and _PORT.
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
ADDRESS_SUFFIX = "_PORT"
RELATED = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")


def is_ignored(value: str) -> bool:
    """Whether a variable of this value sets nothing: it is empty, or the address of a Kubernetes Service."""
    return not value.strip() or SERVICE_ADDRESS.fullmatch(value.strip()) is not None


def describe_ignored(environ: Mapping[str, str], prefix: str) -> str:
    """Which variables with the prefix are ignored and why, for a log line; empty if none is."""
    values = {name: value for name, value in environ.items() if name.upper().startswith(prefix)}
    ignored = {name for name, value in values.items() if is_ignored(value)}
    empty = sorted(name for name in ignored if not values[name].strip())
    owners = [name[: -len(ADDRESS_SUFFIX)] for name in ignored if name.endswith(ADDRESS_SUFFIX)]
    related = {
        name
        for name in values
        for owner in owners
        if name.startswith(owner) and RELATED.fullmatch(name.removeprefix(owner))
    }
    service = sorted((ignored | related).difference(empty))
    parts = []
    if service:
        parts.append(f"{', '.join(service)} (service discovery of Kubernetes or Docker, not settings)")
    if empty:
        parts.append(f"{', '.join(empty)} (empty)")
    return "; ".join(parts)
