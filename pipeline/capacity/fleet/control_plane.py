"""What else a fleet needs, and what of it is full first: gateways, the ledger, Ray Serve's controller, what goes between stages.

The unit costs are processor seconds that were measured on two cores of a server processor (docs/capacity.md); elsewhere they go
with the speed of a core. Each is of a process that there is only one of, but for the gateways.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MOST_USED = 0.8  # of a process's time, beyond which its queue grows long
STATEMENT_SECONDS = 1.0  # between two statements of a replica (safelight.service.usage.reporter)
STAGES = 3  # that charge an image
NODE_BYTES = 1.25e9
MOST = 1e7


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Processor seconds."""

    gateway_request: float = 0.018  # of a gateway and Serve's proxy together, for a request of one image
    ledger_statement: float = 0.002  # its way through Ray included, which is most of it
    ledger_charge: float = 0.000007
    controller_replica: float = 0.0023  # a second, of a replica that is scaled: what it says of its load each second, and whether it is well


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One thing that may be full: how much is asked of it and how much there is of it."""

    name: str
    used: float  # of one process, or the number of processes that are needed
    most: float

    @property
    def share(self) -> float:
        return self.used / self.most


def control_plane(
    requests: float, denoisers: float, others: float, bytes_per_image: float, costs: UnitCosts | None = None
) -> Mapping[str, Bottleneck]:
    """At `requests` a second, with so many denoisers and other replicas, which go between them at ten gigabits into a node."""
    own = costs or UnitCosts()
    replicas = denoisers + others
    ledger = replicas * own.ledger_statement / STATEMENT_SECONDS + STAGES * requests * own.ledger_charge
    into_a_node = requests * bytes_per_image / max(others, 1.0)
    return {
        "gateways": Bottleneck("gateway processes", requests * own.gateway_request / MOST_USED, math.inf),
        "ledger": Bottleneck("the ledger's process", ledger, MOST_USED),
        "controller": Bottleneck("Ray Serve's controller", replicas * own.controller_replica, MOST_USED),
        "object_store": Bottleneck("bytes a second into a decoder's node", into_a_node, NODE_BYTES),
    }


def largest_fleet(
    requests_each: float, others_each: float, bytes_per_image: float, costs: UnitCosts | None = None
) -> Mapping[str, float]:
    """The number of denoisers at which each single part is full, each bringing so many requests a second and other replicas."""
    full = {}
    for name in ("ledger", "controller", "object_store"):
        low, high = 1.0, MOST
        for _ in range(60):
            middle = math.sqrt(low * high)
            part = control_plane(
                middle * requests_each, middle, middle * others_each, bytes_per_image, costs
            )[name]
            low, high = (middle, high) if part.share <= 1.0 else (low, middle)
        full[name] = low
    return full
