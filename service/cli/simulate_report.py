"""The report of `safelight simulate` as text, from the same values as its `--json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from safelight.pipeline.capacity.fleet.control_plane import MAX_DENOISERS
from safelight.service.cli.tables import format_table

LATENCY_KEYS = ("p50_s", "p95_s", "p99_s")
FLEET_HEADER = (
    "GPUs", "images/h", "p50, s", "p95, s", "p99, s", "GPU hours", "max GPUs", "utilisation",
    "retried", "lost", "cost per 1000",
)  # fmt: skip
CONTROL_PLANE_HEADER = ("GPUs", "gateway processes", "ledger", "controller")


def as_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """The scenario and three tables: the fleets, their control plane, and where its components saturate.

    Args:
        reports: one for each fleet, with the keys of `--json`.
    """
    first = reports[0]
    heading = (
        f"{first['model']} on {first['gpu']}, {first['trace']} traffic over {first['hours']:g} hours",
        f"latency of an image alone: {first['alone_s']:.2f} s",
    )
    tables = (
        format_table(FLEET_HEADER, [_fleet_row(report) for report in reports]),
        "control plane at the highest rate, 100% is saturated:",
        format_table(CONTROL_PLANE_HEADER, [_control_plane_row(report) for report in reports]),
        _saturation_table(reports[-1]["full_at_denoisers"]),
    )
    return "\n\n".join(("\n".join(heading), *tables))


def _fleet_row(report: Mapping[str, Any]) -> tuple[str, ...]:
    latencies = (report[key] for key in LATENCY_KEYS)
    utilisation, cost = report["utilisation"], report["cost_per_1000_images"]
    return (
        str(report["gpus"]),
        f"{report['images_per_hour']:.0f}",
        *("-" if seconds is None else f"{seconds:.2f}" for seconds in latencies),
        f"{report['gpu_hours']:.0f}",
        f"{report['most_replicas']:.0f}",
        "-" if utilisation is None else f"{utilisation:.0%}",
        f"{report['resent']:.0f}",
        f"{report['lost']:.0f}",
        "-" if cost is None else f"{cost:.3g}",
    )


def _control_plane_row(report: Mapping[str, Any]) -> tuple[str, ...]:
    components = report["control_plane"]
    return (
        str(report["gpus"]),
        f"{components['gateways']['used']:.1f}",
        f"{components['ledger']['share']:.0%}",
        f"{components['controller']['share']:.0%}",
    )


def _saturation_table(denoisers_by_component: Mapping[str, float]) -> str:
    """The components in the order in which they saturate."""
    rows = [
        (component, "never" if denoisers > 0.999 * MAX_DENOISERS else f"{denoisers:.0f}")
        for component, denoisers in sorted(denoisers_by_component.items(), key=lambda item: item[1])
    ]
    return format_table(("component", "saturates at, denoisers"), rows)
