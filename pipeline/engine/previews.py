"""Previews of running samples: after which ticks, of what, and at what cost they may be decoded.

A preview is x0 = p x + q out, the data that the guided network predicts at a tick. It only reads what the
tick has computed anyway, so it changes no bit of a sample, and its own bits do not depend on batch-mates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from safelight.pipeline.engine.batch import ShapeGroup
from safelight.pipeline.engine.sample import RunningSample
from safelight.pipeline.params import PreviewRequest

FIRST_SHARE = 0.2  # of a sample's work that is done at its first preview
# Shares of a sample's device time that the decoder may spend on one preview: while the sample is alone in the
# engine, which costs nobody throughput, and otherwise.
ALONE_SHARE, SHARED_SHARE = 0.06, 0.01


@dataclass(frozen=True, slots=True)
class SamplePreview:
    """A preview of a sample that goes on."""

    request_id: str
    index: int  # 0 for the first of the sample
    latents: Tensor  # (C, H, W) float32 on the host
    budget_seconds: float  # device time that decoding it may take


@dataclass(frozen=True, slots=True)
class Estimate:
    """The data that a tick predicts for a sample; on the host once the tick is complete."""

    sample: RunningSample
    ticks: int  # of the sample that are done with this one
    index: int  # of the preview
    x0: Tensor  # (C, H, W) float32

    def preview(self, is_alone: bool) -> SamplePreview:
        """The preview, after the tick's seconds were attributed to the sample."""
        work = self.sample.workload.work
        total_seconds = self.sample.device_seconds * sum(work) / sum(work[: self.ticks])
        budget = total_seconds * (ALONE_SHARE if is_alone else SHARED_SHARE)
        return SamplePreview(self.sample.request_id, self.index, self.x0, budget)


def preview_ticks(work: Sequence[float], request: PreviewRequest) -> dict[int, int]:
    """The previews of a sample: the index of each by the number of ticks after which it is taken.

    The first comes when about `FIRST_SHARE` of the work is done, and the others divide the rest evenly. A
    sample of T ticks has at most T - 1, since the last tick gives the image itself.

    Args:
        work: Operations of each tick of the sample.
        request: The previews that are asked for.
    """
    if request.count == 0 or len(work) < 2:
        return {}
    done = list(accumulate(work))
    spacing = (1.0 - FIRST_SHARE) / request.count
    targets = [done[-1] * (FIRST_SHARE + index * spacing) for index in range(request.count)]
    ticks = dict.fromkeys(
        min(range(1, len(work)), key=lambda tick: abs(done[tick - 1] - target)) for target in targets
    )
    return {tick: index for index, tick in enumerate(ticks) if index >= request.first}


def estimates(group: ShapeGroup, x: Tensor, out: Tensor) -> Iterator[Estimate]:
    """The estimates of those samples of a group that have a preview after the present tick.

    Their copies to the host are only queued; they are complete when the device has finished the tick.

    Args:
        group: The samples, before `batch.scatter`.
        x: (S, C, H, W), their latents before the tick.
        out: (S, C, H, W), the guided output of the network.
    """
    for position, sample in enumerate(group.samples):
        ticks = sample.step_index + 1
        if (index := sample.previews.get(ticks)) is not None:
            p, q = sample.plan.data[sample.step_index]
            x0 = p * x[position] + q * out[position]
            yield Estimate(sample, ticks, index, x0.to("cpu", non_blocking=True))
