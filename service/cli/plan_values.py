"""The values in the report of `safelight plan`, by the keys of its `--json`."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from safelight.pipeline.capacity.devices import STAGES, Device
from safelight.pipeline.capacity.image_cost import ImageSpec, ModelProfile
from safelight.pipeline.capacity.predict import HOUR, Prediction, Targets


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device to predict for; `peak_flops` and `mfu` are None for one that was measured."""

    name: str
    device: Device
    peak_flops: float | None = None
    mfu: float | None = None


def describe_request(
    profile: ModelProfile, spec: ImageSpec, choice: DeviceChoice, targets: Targets, prediction: Prediction
) -> dict[str, Any]:
    """The keys of `--json` that describe the request and its cost.

    Args:
        profile: The model's profile.
        spec: The image.
        choice: The device.
        targets: The targets for throughput and latency.
        prediction: The prediction, of which only the cost of an image is used.
    """
    cost = prediction.cost
    return {
        "model": profile.name,
        "gpu": choice.name,
        "peak_tflops": None if choice.peak_flops is None else choice.peak_flops / 1e12,
        "mfu": choice.mfu,
        "size": f"{spec.size[0]}x{spec.size[1]}",
        "steps": spec.num_steps,
        "guidance_scale": spec.guidance_scale,
        "solver": spec.solver,
        "nfe": len(cost.ticks),
        "rows": cost.rows * len(cost.ticks),
        "targets": asdict(targets),
        "tflop_per_image": cost.total / 1e12,
        "stage_tflop": {stage: getattr(cost, stage) / 1e12 for stage in STAGES},
    }


def describe_prediction(prediction: Prediction) -> dict[str, Any]:
    """The keys of `--json` that describe the prediction."""
    return {
        "service_s": prediction.stage_seconds.total,
        "stage_s": asdict(prediction.stage_seconds),
        "latency_s": _finite(prediction.latency_s),
        "mean_latency_s": _finite(prediction.mean_latency_s),
        "images_per_hour_per_device": prediction.images_per_hour_per_device,
        "utilisation": prediction.utilisation,
        "replicas": dict(prediction.replicas),
        "replicas_latency_s": _finite(prediction.replicas_latency_s),
        "meets_latency_alone": prediction.meets_latency_alone,
        "meets_latency": prediction.meets_latency,
        "meets_throughput": prediction.meets_throughput,
        "steps_that_meet": {
            "alone": prediction.max_steps_alone,
            "under_load": prediction.max_steps_under_load,
        },
    }


def cost_per_1000(prediction: Prediction, price_per_hour: float | None) -> float | None:
    """The price of 1000 images, or None without a price of a device for an hour."""
    return None if price_per_hour is None else 1000.0 * price_per_hour * prediction.device_seconds / HOUR


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: the latency of a queue that grows without bound is null."""
    return None if value is None or math.isinf(value) else value
