"""How many images a device draws, how long one takes, and how many replicas that asks for: predicted, before there is a device.

StageDurations are operations over what a device does in a second: its peak times the share of it that is reached (MFU), or, of a machine
that was measured, its cost curve. Requests come at random (Poisson), one image each. No torch at import.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, ModelProfile, image_cost
from safelight.pipeline.capacity.model_profiles import list_published, model_profile, published_profile
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.catalog.model_info import MAX_STEPS, MIN_STEPS
from safelight.pipeline.scheduling.autoscaling import UTILISATION
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload

__all__ = [
    "GPUS", "HOUR", "STAGES", "Device", "Gpu", "ConstantRateDevice", "MeasuredDevice", "ImageSpec", "ModelProfile", "Prediction", "StageDurations", "Targets",
    "list_published", "measured_by", "model_profile", "image_cost", "predict", "published_profile",
]  # fmt: skip

HOUR = 3600.0
STAGES = ("encode", "denoise", "decode")
MOST_REPLICAS = 10_000
QUEUE = 2  # replicas that share one, where there are more than one
TRACE, TRACE_TICKS = 1500, 100_000  # images of a simulated trace, and the ticks of them all, at most
SEED = 0  # of it: traces that differ in their rate alone


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device by its maker's figure: dense bfloat16 operations a second, no sparsity; and the share that eager networks reach."""

    name: str
    peak_flops: float
    eager_mfu: float  # of published times (docs/capacity.md)


GPUS = {
    "a100": Gpu("NVIDIA A100 80 GB SXM", 312e12, 0.4),
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 0.3),
    "h200": Gpu("NVIDIA H200 SXM", 989e12, 0.3),
    "l40s": Gpu("NVIDIA L40S", 362e12, 0.4),  # of which none was found: the A100's
}


@dataclass(frozen=True, slots=True)
class Targets:
    """What is wanted of a device, and of the fleet: so many images an hour, and so many percent of them within `latency_s`."""

    images_per_hour: float = 1000.0
    latency_s: float = 5.0
    percentile: float = 95.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.images_per_hour / HOUR

    @property
    def share(self) -> float:
        return self.percentile / 100.0


@dataclass(frozen=True, slots=True)
class StageDurations:
    """Of one image alone, by stage."""

    encode: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        return self.encode + self.denoise + self.decode


class Device(Protocol):
    """What an image takes of it. Loads are requests a second."""

    def seconds(self, work: ImageCost) -> StageDurations:
        """Alone."""

    def busy_seconds(self, work: ImageCost) -> StageDurations:
        """Of the device's time, where it has all the company that it is worth having."""

    def each_takes(self, work: ImageCost) -> float:
        """StageDurations between two images, where there are as many as can be drawn."""

    def waits(self, work: ImageCost, rate: float, share: float) -> float:
        """Beyond its seconds alone, what `share` of the images take at most if one device has all three stages; infinite if never."""

    def denoise_waits(self, work: ImageCost, rate: float, share: float, count: int) -> float:
        """The same of `count` devices that do nothing but denoise."""


@dataclass(frozen=True, slots=True)
class ConstantRateDevice:
    """A device that reaches `flops` operations a second in every stage, and draws one image after the other.

    At 1024 x 1024 an image's rows fill a GPU, and a batch takes as long as its images one by one (docs/capacity.md).
    """

    flops: float

    def seconds(self, work: ImageCost) -> StageDurations:
        return StageDurations(work.encode / self.flops, work.denoise / self.flops, work.decode / self.flops)

    def busy_seconds(self, work: ImageCost) -> StageDurations:
        return self.seconds(work)

    def each_takes(self, work: ImageCost) -> float:
        return self.seconds(work).total

    def waits(self, work: ImageCost, rate: float, share: float) -> float:
        return MDcQueue(rate, self.seconds(work).total).wait_quantile(share)

    def denoise_waits(self, work: ImageCost, rate: float, share: float, count: int) -> float:
        return _wait(rate, self.seconds(work).denoise, share, count)


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """A machine that was measured: what ticks cost, seconds to read a text and to decode an image, and what a tick holds.

    `in_turns` where each stage was measured while the others rested, so that on one device they take turns. A service's own figures
    were learnt while all of them worked, side by side: they know of one another. Waits are those of the engine's own rule on a
    simulated trace: ticks of many rows may cost less than the rows one by one.
    """

    curve: CostCurve
    text_seconds: float
    decode_seconds: float
    limits: Limits
    in_turns: bool = True

    def seconds(self, work: ImageCost) -> StageDurations:
        return StageDurations(
            work.rows * self.text_seconds, sum(map(self.curve.seconds_for, work.ticks)), self.decode_seconds
        )

    def busy_seconds(self, work: ImageCost) -> StageDurations:
        alone, tick = self.seconds(work), work.ticks[0]
        images = max(
            1, min(self.limits.max_rows // work.rows, self.limits.max_tokens // (work.rows * work.tokens))
        )
        most = max(tick, min(images * tick, self.curve.best_work))
        full = sum(each * self.curve.seconds_for(most) / most for each in work.ticks)
        return replace(alone, denoise=min(alone.denoise, full))

    def each_takes(self, work: ImageCost) -> float:
        busy = self.busy_seconds(work)
        return busy.total if self.in_turns else max(busy.encode, busy.denoise, busy.decode)

    def waits(self, work: ImageCost, rate: float, share: float) -> float:
        """The other stages' seconds are taken off the time in which the device denoises, if they take turns."""
        others = self.decode_seconds + work.rows * self.text_seconds if self.in_turns else 0.0
        if rate * self.each_takes(work) >= 1.0:
            return math.inf
        return self._simulated(work, rate, share, slower=1.0 / (1.0 - rate * others))

    def denoise_waits(self, work: ImageCost, rate: float, share: float, count: int) -> float:
        """Each is taken to have its share at random, which is worse than it is."""
        if rate / count * self.busy_seconds(work).denoise >= 1.0:
            return math.inf
        return self._simulated(work, rate / count, share)

    def _simulated(self, work: ImageCost, rate: float, share: float, slower: float = 1.0) -> float:
        curve = replace(self.curve, slowdown=self.curve.slowdown * slower)
        rng, now, coming = random.Random(SEED), 0.0, list[SimulatedSample]()
        count = max(1, min(TRACE, TRACE_TICKS // len(work.ticks)))
        for _ in range(count):
            now += rng.expovariate(rate)
            coming.append(
                SimulatedSample(
                    make_workload([work.rows] * len(work.ticks), work.ticks, work.tokens, curve, now)
                )
            )
        done = simulate(coming, partial(select_next_batch, limits=self.limits, curve=curve), curve)
        latencies = sorted(each.latency for each in done)
        return max(0.0, latencies[min(int(share * count), count - 1)] - self.seconds(work).denoise)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect; seconds. `latency_s` is at the wanted percentile when a device alone has all that is wanted, infinite if it
    cannot. `most_steps` are the most that meet both targets, of an image alone and under load, 0 if none do."""

    work: ImageCost
    seconds: StageDurations
    latency_s: float
    mean_latency_s: float | None  # where there is a formula
    images_per_hour_per_device: float
    utilisation: float
    replicas: Mapping[str, int]
    replicas_latency_s: float
    meets_latency_alone: bool
    meets_latency: bool
    meets_throughput: bool
    most_steps: tuple[int, int]
    device_seconds: float  # of one image, in company


def measured_by(
    curves: Mapping[str, CostCurve],
    outline: ModelProfile,
    size: tuple[int, int],
    max_rows: int,
    max_tokens: int,
) -> MeasuredDevice:
    """A running service as a machine: the curve of each stage (`/v1/curve`), for images of `size` (width, height).

    A tick holds so many rows, and tokens; 0: those of as many rows at the native size.
    """
    width, height = (side // outline.scale for side in size)
    native = [side // outline.scale // outline.patch for side in outline.native_size]
    limits = Limits(max_rows, max_tokens or max_rows * native[0] * native[1])
    text, image = (
        curves["encode"].seconds_for(max(outline.text, 1.0)),
        curves["decode"].seconds_for(outline.decode(height, width)),
    )
    return MeasuredDevice(curves["denoise"], text, image, limits, in_turns=False)


def predict(outline: ModelProfile, order: ImageSpec, device: Device, targets: Targets) -> Prediction:
    """`order` drawn by `device` against `targets`. Raises `InvalidParams` for an order that the model cannot draw."""
    work = image_cost(outline, order)
    alone, busy = device.seconds(work), device.each_takes(work)
    latency = alone.total + device.waits(work, targets.rate, targets.share)
    replicas, fleet_latency = required_replicas(work, device, targets)
    is_queue = isinstance(device, ConstantRateDevice)
    return Prediction(
        work=work,
        seconds=alone,
        latency_s=latency,
        mean_latency_s=alone.total + MDcQueue(targets.rate, alone.total).mean_wait if is_queue else None,
        images_per_hour_per_device=HOUR / busy,
        utilisation=targets.rate * busy,
        replicas=replicas,
        replicas_latency_s=fleet_latency,
        meets_latency_alone=alone.total <= targets.latency_s,
        meets_latency=latency <= targets.latency_s,
        meets_throughput=HOUR / busy >= targets.images_per_hour,
        most_steps=(
            _most_steps(
                outline,
                order,
                lambda work: (
                    _keeps_up(device, work, targets) and device.seconds(work).total <= targets.latency_s
                ),
            ),
            _most_steps(outline, order, lambda work: _in_time(device, work, targets)),
        ),
        device_seconds=busy,
    )


def required_replicas(work: ImageCost, device: Device, targets: Targets) -> tuple[dict[str, int], float]:
    """Replicas of each stage, each with a device of its own, that draw what is wanted in time; and the latency at the percentile.

    The waits of the stages at the percentile are added up, which is worse than what happens. Where an image alone takes too long,
    no number will do: then as many as are busy for four fifths of the time.
    """
    busy, alone = device.busy_seconds(work), device.seconds(work)
    least = {stage: max(1, math.ceil(targets.rate * getattr(busy, stage) / UTILISATION)) for stage in STAGES}

    def waits(stage: str, count: int) -> float:
        if stage == "denoise":
            return device.denoise_waits(work, targets.rate, targets.share, count)
        return _wait(targets.rate, getattr(alone, stage), targets.share, count)

    def enough() -> tuple[dict[str, int], float]:
        return least, alone.total + sum(waits(stage, count) for stage, count in least.items())

    if alone.total > targets.latency_s:
        return enough()
    counts = {stage: max(1, math.ceil(targets.rate * getattr(busy, stage))) for stage in STAGES}
    each = {stage: waits(stage, count) for stage, count in counts.items()}
    while alone.total + sum(each.values()) > targets.latency_s:
        slowest = max(STAGES, key=lambda stage: each[stage])
        if each[slowest] == 0.0 or counts[slowest] >= MOST_REPLICAS:
            return enough()
        counts[slowest] += 1
        each[slowest] = waits(slowest, counts[slowest])
    return counts, alone.total + sum(each.values())


def _wait(rate: float, seconds: float, share: float, count: int) -> float:
    """Of `count` replicas, two to a queue. Ray Serve gives a request to the less busy of two replicas at random: of two as good as
    one queue, of more better than queues of two and worse than one (docs/capacity.md)."""
    if not seconds:
        return 0.0
    together = min(count, QUEUE)
    return MDcQueue(rate * together / count, seconds, together).wait_quantile(share)


def _keeps_up(device: Device, work: ImageCost, targets: Targets) -> bool:
    return HOUR / device.each_takes(work) >= targets.images_per_hour


def _in_time(device: Device, work: ImageCost, targets: Targets) -> bool:
    alone = device.seconds(work).total
    return (
        alone <= targets.latency_s
        and alone + device.waits(work, targets.rate, targets.share) <= targets.latency_s
    )


def _most_steps(outline: ModelProfile, order: ImageSpec, is_met: Callable[[ImageCost], bool]) -> int:
    """The most steps at which `is_met`, which more steps never make true; 0 if it never is."""
    low, high = MIN_STEPS - 1, MAX_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        met = is_met(image_cost(outline, replace(order, num_steps=middle)))
        low, high = (middle, high) if met else (low, middle - 1)
    return low
