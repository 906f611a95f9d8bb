"""A tick whose work is queued on the device, and what it will have given when the device has done it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.pipeline.engine.batch import BatchLayout, gather, guided, restore_sources, scatter, update
from safelight.pipeline.engine.device_clock import Mark
from safelight.pipeline.engine.metering import TickWork
from safelight.pipeline.engine.previews import Estimate, estimates
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.sample import RunningSample


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A sample after its last tick, and its latents (C, H, W) on the host, complete with the tick."""

    sample: RunningSample
    latents: Tensor

    @property
    def is_sound(self) -> bool:
        return bool(torch.isfinite(self.latents).all())


@dataclass(frozen=True, slots=True)
class TickInFlight:
    """A tick that the device may still be computing."""

    work: TickWork
    start: Mark
    end: Mark  # of the computation
    done: Mark  # of the copies to the host
    finished: tuple[FinishedSample, ...]
    estimates: tuple[Estimate, ...]

    def wait(self) -> float:
        """Wait until everything is on the host; returns the device's seconds."""
        self.done.wait()
        return self.end.seconds_since(self.start)


def queue_tick(layout: BatchLayout, runner: StepRunner, work: TickWork, start: Mark) -> TickInFlight:
    """Queue the next tick of the samples of `layout`. Until all outputs are there, no sample is changed.

    Args:
        layout: The batch.
        runner: The network.
        work: What the tick computes.
        start: Its beginning, in front of the work for its layout.
    """
    buffers = [gather(group) for group in layout.groups]
    outputs = runner.forward(layout, buffers)
    outputs = [guided(group, rows) for group, rows in zip(layout.groups, outputs, strict=True)]
    estimated: list[Estimate] = []
    for group, group_buffers, out in zip(layout.groups, buffers, outputs, strict=True):
        estimated += estimates(group, group_buffers.x, out)
        scatter(group, restore_sources(group, update(group_buffers, out)))
    end = runner.clock.mark()
    finished = tuple(_queue_copy(sample) for sample in work.samples if sample.is_done)
    return TickInFlight(work, start, end, runner.clock.mark(), finished, tuple(estimated))


def _queue_copy(sample: RunningSample) -> FinishedSample:
    """Queue the copy to the host of a sample's latents, a view that the next tick overwrites."""
    with torch.inference_mode(False):  # so that the latents are an ordinary tensor
        return FinishedSample(sample, sample.x.to("cpu", copy=True, non_blocking=True))
