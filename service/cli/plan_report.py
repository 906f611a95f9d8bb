"""The report of `safelight plan` as text, from the same values as its `--json`."""

from collections.abc import Mapping
from typing import Any

from safelight.pipeline.capacity.devices import STAGES
from safelight.service.cli.tables import format_table


def as_text(report: Mapping[str, Any]) -> str:
    """The request, the device, and three tables: stages, targets, and one device.

    Args:
        report: The values by the keys of `--json`.
    """
    speed = ""
    if report["mfu"] is not None:
        speed = f", at {100 * report['mfu']:g} % of {report['peak_tflops']:g} TFLOPS"
    image = f"{report['size']}, {report['steps']} steps of {report['solver']}"
    load = f"{report['targets']['images_per_hour']:g} images/h, arriving at random"
    heading = (
        f"image: {report['model']}, {image} at guidance {report['guidance_scale']:g}",
        f"device: {report['gpu']}{speed}",
        f"load: {load}",
    )
    tables = (_stage_table(report), _target_table(report), _summary_table(report))
    return "\n\n".join(("\n".join(heading), *tables))


def _stage_table(report: Mapping[str, Any]) -> str:
    """Operations and seconds of one image alone in each stage, and the replicas that meet the targets."""
    rows = [
        (
            stage,
            f"{report['stage_tflop'][stage]:.4g}",
            f"{report['stage_s'][stage]:.3g}",
            str(report["replicas"][stage]),
        )
        for stage in STAGES
    ]
    total = (
        "total",
        f"{report['tflop_per_image']:.4g}",
        f"{report['service_s']:.3g}",
        str(sum(report["replicas"].values())),
    )
    return format_table(("stage", "TFLOP", "seconds", "replicas"), [*rows, total])


def _target_table(report: Mapping[str, Any]) -> str:
    """Each target beside the prediction, for one device and for all replicas."""
    targets, replicas_latency = report["targets"], report["replicas_latency_s"]
    percentile, max_latency = f"p{targets['percentile']:g}", targets["latency_s"]
    throughput = (
        "throughput of one device, images/h",
        f"at least {targets['images_per_hour']:g}",
        f"{report['images_per_hour_per_device']:.0f}",
        _verdict(report["meets_throughput"]),
    )
    latencies = (
        ("latency of an image alone, s", report["service_s"], report["meets_latency_alone"]),
        (f"latency {percentile} of one device, s", report["latency_s"], report["meets_latency"]),
        (
            f"latency {percentile} of all replicas, s",
            replicas_latency,
            replicas_latency is not None and replicas_latency <= max_latency,
        ),
    )
    rows = [
        (metric, f"at most {max_latency:g}", _seconds(seconds), _verdict(is_met))
        for metric, seconds, is_met in latencies
    ]
    return format_table(("metric", "target", "predicted", "verdict"), [throughput, *rows])


def _summary_table(report: Mapping[str, Any]) -> str:
    """Utilisation, the most steps within the targets, and the cost."""
    percentile, max_steps = f"p{report['targets']['percentile']:g}", report["steps_that_meet"]
    rows = [
        ("utilisation", f"{report['utilisation']:.0%}"),
        ("most steps with throughput and latency alone met", str(max_steps["alone"])),
        (f"most steps with latency {percentile} met", str(max_steps["under_load"])),
    ]
    if report["cost_per_1000_images"] is not None:
        rows.append(("cost of 1000 images", f"{report['cost_per_1000_images']:.4g}"))
    return format_table(("one device", "predicted"), rows)


def _seconds(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.2f}"


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"
