"""Images an hour, latency under load and replicas for a target, predicted for a model on a device.

Requests arrive at random (Poisson), one image each. No torch at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from safelight.pipeline.capacity.devices import STAGES, Device, StageDurations, paired_wait_seconds
from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, ModelProfile, image_cost
from safelight.pipeline.catalog.model_info import MAX_STEPS, MIN_STEPS
from safelight.pipeline.scheduling.autoscaling import UTILISATION

HOUR = 3600.0
MAX_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class Targets:
    """A throughput, and a latency that `percentile` percent of the images may not exceed."""

    images_per_hour: float = 1000.0
    latency_s: float = 5.0
    percentile: float = 95.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.images_per_hour / HOUR

    @property
    def share(self) -> float:
        """The percentile as a share, 0 to 1."""
        return self.percentile / 100.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect of a model on a device, against the targets. Durations are in seconds.

    Attributes:
        cost: operations of the image.
        stage_seconds: durations of the stages of an image alone.
        latency_s: latency at the targets' percentile on one device under the full load; infinite if it cannot
            keep up.
        mean_latency_s: mean latency under the same load; None where no formula gives it.
        images_per_hour_per_device: throughput of one device that is never idle.
        utilisation: share of one device's time that the full load takes; more than 1 if it cannot keep up.
        replicas: replicas of each stage for the targets, each on a device of its own.
        replicas_latency_s: latency at the percentile with these replicas.
        meets_latency_alone: whether an image alone is within the target latency.
        meets_latency: whether `latency_s` is within the target latency.
        meets_throughput: whether one device reaches the target throughput.
        max_steps_alone: the most steps with which one device meets the throughput, and an image alone the
            latency; 0 if none do.
        max_steps_under_load: the most steps with which one device meets the latency under the full load; 0 if
            none do.
        device_seconds: device time of one image in a full batch.
    """

    cost: ImageCost
    stage_seconds: StageDurations
    latency_s: float
    mean_latency_s: float | None
    images_per_hour_per_device: float
    utilisation: float
    replicas: Mapping[str, int]
    replicas_latency_s: float
    meets_latency_alone: bool
    meets_latency: bool
    meets_throughput: bool
    max_steps_alone: int
    max_steps_under_load: int
    device_seconds: float


def predict(profile: ModelProfile, spec: ImageSpec, device: Device, targets: Targets) -> Prediction:
    """What to expect of images of `spec` on `device`, against `targets`.

    Raises `InvalidParams` for a `spec` that the model cannot serve.
    """
    cost = image_cost(profile, spec)
    alone, marginal = device.stage_seconds(cost), device.marginal_seconds(cost)
    latency = alone.total + device.wait_seconds(cost, targets.rate, targets.share)
    replicas, replicas_latency = required_replicas(cost, device, targets)
    mean_wait = device.mean_wait_seconds(cost, targets.rate)
    return Prediction(
        cost=cost,
        stage_seconds=alone,
        latency_s=latency,
        mean_latency_s=None if mean_wait is None else alone.total + mean_wait,
        images_per_hour_per_device=HOUR / marginal,
        utilisation=targets.rate * marginal,
        replicas=replicas,
        replicas_latency_s=replicas_latency,
        meets_latency_alone=alone.total <= targets.latency_s,
        meets_latency=latency <= targets.latency_s,
        meets_throughput=HOUR / marginal >= targets.images_per_hour,
        max_steps_alone=_max_steps(profile, spec, lambda cost: _meets_both_alone(device, cost, targets)),
        max_steps_under_load=_max_steps(profile, spec, lambda cost: _meets_latency(device, cost, targets)),
        device_seconds=marginal,
    )


def required_replicas(cost: ImageCost, device: Device, targets: Targets) -> tuple[dict[str, int], float]:
    """The replicas of each stage that meet the targets, and the latency at the percentile with them.

    Each replica has a device of its own. The stages' waits at the percentile are added up, which
    overestimates the latency. Where an image alone misses the target, no number of replicas meets it: the
    result is then as many as are busy for `UTILISATION` of the time.
    """
    busy, alone = device.busy_seconds(cost), device.stage_seconds(cost)

    def wait_seconds(stage: str, replicas: int) -> float:
        if stage == "denoise":
            return device.denoise_wait_seconds(cost, targets.rate, targets.share, replicas)
        return paired_wait_seconds(targets.rate, getattr(alone, stage), targets.share, replicas)

    def for_throughput_only() -> tuple[dict[str, int], float]:
        counts = _counts_at(UTILISATION, busy, targets.rate)
        return counts, alone.total + sum(wait_seconds(stage, count) for stage, count in counts.items())

    if alone.total > targets.latency_s:
        return for_throughput_only()
    counts = _counts_at(1.0, busy, targets.rate)
    waits = {stage: wait_seconds(stage, count) for stage, count in counts.items()}
    while alone.total + sum(waits.values()) > targets.latency_s:
        slowest = max(STAGES, key=lambda stage: waits[stage])
        if waits[slowest] == 0.0 or counts[slowest] >= MAX_REPLICAS:
            return for_throughput_only()
        counts[slowest] += 1
        waits[slowest] = wait_seconds(slowest, counts[slowest])
    return counts, alone.total + sum(waits.values())


def _counts_at(utilisation: float, busy: StageDurations, rate: float) -> dict[str, int]:
    """The fewest replicas of each stage that are busy for at most `utilisation` of the time."""
    return {stage: max(1, math.ceil(rate * getattr(busy, stage) / utilisation)) for stage in STAGES}


def _meets_both_alone(device: Device, cost: ImageCost, targets: Targets) -> bool:
    """Whether one device reaches the throughput, and an image alone the latency."""
    if HOUR / device.marginal_seconds(cost) < targets.images_per_hour:
        return False
    return device.stage_seconds(cost).total <= targets.latency_s


def _meets_latency(device: Device, cost: ImageCost, targets: Targets) -> bool:
    """Whether one device meets the latency at the percentile under the full load."""
    alone = device.stage_seconds(cost).total
    if alone > targets.latency_s:
        return False
    return alone + device.wait_seconds(cost, targets.rate, targets.share) <= targets.latency_s


def _max_steps(profile: ModelProfile, spec: ImageSpec, is_met: Callable[[ImageCost], bool]) -> int:
    """The most steps at which `is_met`; 0 if there are none. More steps never make it true."""
    low, high = MIN_STEPS - 1, MAX_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        met = is_met(image_cost(profile, replace(spec, num_steps=middle)))
        low, high = (middle, high) if met else (low, middle - 1)
    return low
