"""Devices in the capacity model: seconds of an image alone, in a full batch, and of waiting under load.

A device is either a GPU at its peak times the share of it that is reached (MFU), or a measured machine with
its cost curve. Requests arrive at random (Poisson), one image each. No torch here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from safelight.pipeline.capacity.image_cost import ImageCost, ModelProfile
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload

STAGES = ("encode", "denoise", "decode")
REPLICAS_PER_QUEUE = 2
# The most images of a simulated trace, the most ticks of them all, and one seed, so that traces differ in
# their rate only.
TRACE_IMAGES, TRACE_TICKS, TRACE_SEED = 1500, 100_000, 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        name: the maker's name for it.
        peak_flops: dense bfloat16 operations a second, without sparsity.
        eager_mfu: the share of the peak that eager PyTorch reaches in published measurements
            (docs/capacity.md).
    """

    name: str
    peak_flops: float
    eager_mfu: float


GPUS = {
    "a100": Gpu("NVIDIA A100 80 GB SXM", 312e12, 0.4),
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 0.3),
    "h200": Gpu("NVIDIA H200 SXM", 989e12, 0.3),
    "l40s": Gpu("NVIDIA L40S", 362e12, 0.4),  # no published measurement found: the A100's share
}


# Share of the best matrix product that full ticks reach on a device without data sheet (docs/performance.md).
MEASURED_PEAK_MFU = 0.5


def find_gpu(name: str) -> Gpu | None:
    """The GPU that a driver calls `name`, such as "NVIDIA H100 80GB HBM3"; None if it is not in `GPUS`."""
    words = name.lower().replace("-", " ").split()
    return next((gpu for key, gpu in GPUS.items() if key in words), None)


@dataclass(frozen=True, slots=True)
class StageDurations:
    """Seconds of one image in each stage."""

    encode: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        return self.encode + self.denoise + self.decode


class Device(Protocol):
    """How long images take on a device, in seconds.

    `rate` is in requests a second; `share` is a share of the images, 0 to 1.
    """

    def stage_seconds(self, cost: ImageCost) -> StageDurations:
        """Durations of the stages of an image that has the device to itself."""

    def busy_seconds(self, cost: ImageCost) -> StageDurations:
        """Device time that an image takes in the batch of the highest throughput."""

    def marginal_seconds(self, cost: ImageCost) -> float:
        """Seconds between two images at the highest throughput, all stages on one device."""

    def wait_seconds(self, cost: ImageCost, rate: float, share: float) -> float:
        """The queueing delay that `share` of the images do not exceed, all stages on one device.

        The delay is latency under load minus the seconds of an image alone; infinite if the device cannot
        keep up.
        """

    def mean_wait_seconds(self, cost: ImageCost, rate: float) -> float | None:
        """The mean of the same delay; None where no formula gives it."""

    def denoise_wait_seconds(self, cost: ImageCost, rate: float, share: float, replicas: int) -> float:
        """The same delay for `replicas` devices that only denoise; `rate` is that of all of them."""


@dataclass(frozen=True, slots=True)
class ConstantRateDevice:
    """A device that executes `flops` operations a second in every stage, one image after the other.

    At 1024x1024 one image's rows fill a GPU: a batch takes as long as its images one by one
    (docs/capacity.md).
    """

    flops: float

    def stage_seconds(self, cost: ImageCost) -> StageDurations:
        return StageDurations(cost.encode / self.flops, cost.denoise / self.flops, cost.decode / self.flops)

    def busy_seconds(self, cost: ImageCost) -> StageDurations:
        return self.stage_seconds(cost)

    def marginal_seconds(self, cost: ImageCost) -> float:
        return self.stage_seconds(cost).total

    def wait_seconds(self, cost: ImageCost, rate: float, share: float) -> float:
        return MDcQueue(rate, self.stage_seconds(cost).total).wait_quantile(share)

    def mean_wait_seconds(self, cost: ImageCost, rate: float) -> float:
        return MDcQueue(rate, self.stage_seconds(cost).total).mean_wait

    def denoise_wait_seconds(self, cost: ImageCost, rate: float, share: float, replicas: int) -> float:
        return paired_wait_seconds(rate, self.stage_seconds(cost).denoise, share, replicas)


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """A measured machine, or a running service.

    Waits are simulated with the engine's own batching on the cost curve, because a tick of many rows may cost
    less than its rows one by one.

    Attributes:
        curve: seconds of a tick by its operations.
        text_seconds: seconds to encode one text.
        decode_seconds: seconds to decode one image.
        limits: rows and tokens of a tick.
        stages_take_turns: whether the stages share the device one at a time. True where each was measured
            while the others were idle; False for a service's own measurements, which were taken while all
            stages worked.
    """

    curve: CostCurve
    text_seconds: float
    decode_seconds: float
    limits: Limits
    stages_take_turns: bool = True

    def stage_seconds(self, cost: ImageCost) -> StageDurations:
        return StageDurations(
            cost.rows * self.text_seconds, sum(map(self.curve.seconds_for, cost.ticks)), self.decode_seconds
        )

    def busy_seconds(self, cost: ImageCost) -> StageDurations:
        alone, tick_work = self.stage_seconds(cost), cost.ticks[0]
        max_images = max(
            1, min(self.limits.max_rows // cost.rows, self.limits.max_tokens // (cost.rows * cost.tokens))
        )
        batch_work = max(tick_work, min(max_images * tick_work, self.curve.best_work))
        in_full_batch = sum(work * self.curve.seconds_for(batch_work) / batch_work for work in cost.ticks)
        return replace(alone, denoise=min(alone.denoise, in_full_batch))

    def marginal_seconds(self, cost: ImageCost) -> float:
        busy = self.busy_seconds(cost)
        return busy.total if self.stages_take_turns else max(busy.encode, busy.denoise, busy.decode)

    def wait_seconds(self, cost: ImageCost, rate: float, share: float) -> float:
        """Where the stages take turns, the denoiser has only the time that the other stages leave."""
        other_stages = 0.0
        if self.stages_take_turns:
            other_stages = self.decode_seconds + cost.rows * self.text_seconds
        if rate * self.marginal_seconds(cost) >= 1.0:
            return math.inf
        return self._simulated_wait(cost, rate, share, slowdown=1.0 / (1.0 - rate * other_stages))

    def mean_wait_seconds(self, cost: ImageCost, rate: float) -> None:
        return None

    def denoise_wait_seconds(self, cost: ImageCost, rate: float, share: float, replicas: int) -> float:
        """Each replica is taken to get its share of the requests at random, which overestimates the wait."""
        if rate / replicas * self.busy_seconds(cost).denoise >= 1.0:
            return math.inf
        return self._simulated_wait(cost, rate / replicas, share)

    def _simulated_wait(self, cost: ImageCost, rate: float, share: float, slowdown: float = 1.0) -> float:
        curve = replace(self.curve, slowdown=self.curve.slowdown * slowdown)
        rng, arrival, samples = random.Random(TRACE_SEED), 0.0, list[SimulatedSample]()
        count = max(1, min(TRACE_IMAGES, TRACE_TICKS // len(cost.ticks)))
        rows = [cost.rows] * len(cost.ticks)
        for _ in range(count):
            arrival += rng.expovariate(rate)
            samples.append(SimulatedSample(make_workload(rows, cost.ticks, cost.tokens, curve, arrival)))
        finished = simulate(samples, partial(select_next_batch, limits=self.limits, curve=curve), curve)
        latencies = sorted(sample.latency for sample in finished)
        return max(0.0, latencies[min(int(share * count), count - 1)] - self.stage_seconds(cost).denoise)


def measured_device(
    curves: Mapping[str, CostCurve],
    profile: ModelProfile,
    size: tuple[int, int],
    max_rows: int,
    max_tokens: int,
) -> MeasuredDevice:
    """A running service as a device, from the cost curves of its stages (`/v1/curve`).

    Args:
        curves: the cost curve of each stage; "encode" may be missing for a model without text encoders.
        profile: the model that the service serves.
        size: (width, height) of the images in pixels.
        max_rows: rows of a tick.
        max_tokens: image tokens of a tick; 0: those of `max_rows` rows at the native size.
    """
    width, height = (side // profile.scale for side in size)
    native = [side // profile.scale // profile.patch for side in profile.native_size]
    return MeasuredDevice(
        curve=curves["denoise"],
        # a class label is looked up, so there is no curve of it
        text_seconds=curves["encode"].seconds_for(profile.text) if profile.text else 0.0,
        decode_seconds=curves["decode"].seconds_for(profile.decode(height, width)),
        limits=Limits(max_rows, max_tokens or max_rows * native[0] * native[1]),
        stages_take_turns=False,
    )


def paired_wait_seconds(rate: float, seconds: float, share: float, replicas: int) -> float:
    """The wait at a stage whose replicas share queues in pairs, which `share` of the images do not exceed.

    Ray Serve sends a request to the less busy of two replicas chosen at random. For two replicas that is
    nearly one shared queue; for more it is better than queues of two and worse than one queue
    (docs/capacity.md).

    Args:
        rate: requests a second at the stage.
        seconds: constant service time of a request.
        share: share of the images, 0 to 1.
        replicas: number of replicas of the stage.
    """
    if not seconds:
        return 0.0
    servers = min(replicas, REPLICAS_PER_QUEUE)
    return MDcQueue(rate * servers / replicas, seconds, servers).wait_quantile(share)
