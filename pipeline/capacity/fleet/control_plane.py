"""Which component of the control plane saturates first as a fleet grows.

The unit costs are processor seconds, and assumed: they scale with the speed of a core, and
`python -m tests.bench.control_plane` measures them (docs/capacity.md). There is one process of each component
except the gateway.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MAX_UTILISATION = 0.8  # of a process's time; beyond it its queue grows long
REPORT_SECONDS = 1.0  # between two usage reports of a replica (safelight.service.usage.reporter)
USAGE_EVENTS_PER_IMAGE = 3  # one from each stage
NODE_BYTES_PER_SECOND = 1.25e9  # ten gigabits
MAX_DENOISERS = 1e7  # where the search ends
SINGLE_COMPONENTS = ("ledger", "controller", "object_store")


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Processor seconds that one unit of work costs a component of the control plane.

    Attributes:
        gateway_request: of a gateway and Serve's proxy together, for a request of one image.
        ledger_report: of the ledger for a replica's usage report, most of it spent in Ray's remote call.
        ledger_event: of the ledger for a usage event.
        controller_replica: of Ray Serve's controller, each second, for a replica that is autoscaled: its load
            reports and health checks.
    """

    gateway_request: float = 0.018
    ledger_report: float = 0.002
    ledger_event: float = 0.000007
    controller_replica: float = 0.0023


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A component that may saturate.

    Attributes:
        name: the component in words.
        used: what the load takes: a share of one process's time, a number of processes, or bytes a second.
        limit: the most that the component has, in the same unit; infinite for what grows with the load.
    """

    name: str
    used: float
    limit: float

    @property
    def utilisation(self) -> float:
        """`used` as a share of `limit`; at 1 the component is saturated."""
        return self.used / self.limit


def control_plane(
    requests_per_second: float,
    denoisers: float,
    other_replicas: float,
    bytes_per_image: float,
    costs: UnitCosts | None = None,
) -> Mapping[str, Bottleneck]:
    """The use of each component, by its name.

    Args:
        requests_per_second: requests of one image each.
        denoisers: replicas of the denoise stage.
        other_replicas: replicas of the encode and decode stages.
        bytes_per_image: bytes that go from a denoiser to a decoder for one image.
        costs: unit costs; by default the assumed ones.
    """
    costs = costs or UnitCosts()
    replicas = denoisers + other_replicas
    events_per_second = USAGE_EVENTS_PER_IMAGE * requests_per_second
    gateways = requests_per_second * costs.gateway_request / MAX_UTILISATION
    ledger = replicas * costs.ledger_report / REPORT_SECONDS + events_per_second * costs.ledger_event
    node_bytes = requests_per_second * bytes_per_image / max(other_replicas, 1.0)
    return {
        "gateways": Bottleneck("gateway processes", gateways, math.inf),
        "ledger": Bottleneck("the ledger's process", ledger, MAX_UTILISATION),
        "controller": Bottleneck(
            "Ray Serve's controller", replicas * costs.controller_replica, MAX_UTILISATION
        ),
        "object_store": Bottleneck("bytes a second into a decoder's node", node_bytes, NODE_BYTES_PER_SECOND),
    }


def largest_fleet(
    requests_per_denoiser: float,
    other_replicas_per_denoiser: float,
    bytes_per_image: float,
    costs: UnitCosts | None = None,
) -> Mapping[str, float]:
    """The number of denoisers at which each component that exists only once saturates, by its name.

    Args:
        requests_per_denoiser: requests a second that each denoiser adds.
        other_replicas_per_denoiser: replicas of the other stages that each denoiser adds.
        bytes_per_image: bytes that go from a denoiser to a decoder for one image.
        costs: unit costs; by default the assumed ones.
    """

    def utilisation(component: str, denoisers: float) -> float:
        components = control_plane(
            denoisers * requests_per_denoiser,
            denoisers,
            denoisers * other_replicas_per_denoiser,
            bytes_per_image,
            costs,
        )
        return components[component].utilisation

    limits = {}
    for component in SINGLE_COMPONENTS:
        low, high = 1.0, MAX_DENOISERS
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if utilisation(component, middle) <= 1.0 else (low, middle)
        limits[component] = low
    return limits
