"""The tiny network as an engine runs it, on a clock that its ticks move."""

from collections.abc import Sequence

from torch import Tensor

from safelight.pipeline.engine.batch import BatchLayout, UpdateBuffers
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.clock import ManualClock
from tests.pipeline.parts import runner as tiny_runner


class TimedRunner(StepRunner):
    """The tiny network, whose ticks take on `clock` what `curve` says, whatever they take."""

    def __init__(self, clock: ManualClock, curve: CostCurve):
        tiny = tiny_runner()
        super().__init__(tiny.network, tiny.dtype, tiny.device)
        self.manual_clock, self.curve = clock, curve

    def forward(self, layout: BatchLayout, buffers: Sequence[UpdateBuffers]) -> list[Tensor]:
        work = sum(sample.workload.work[sample.step_index] for sample in layout.samples)
        self.manual_clock.advance(self.curve.seconds_for(work))
        return super().forward(layout, buffers)
