"""A clock for tests, which only `sleep` and the ticks of a `TimedRunner` move."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from safelight.pipeline.engine.batch import BatchLayout, UpdateBuffers
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.pipeline.parts import runner as tiny_runner


@dataclass
class Clock:
    """In place of the module `time`."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-9  # as a real one does, so that rounding cannot end it too early

    def replace_time(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        """Be the clock of `modules` of `safelight.pipeline`."""
        for module in modules:
            monkeypatch.setattr(f"safelight.pipeline.{module}.time", self)


class TimedRunner(StepRunner):
    """The tiny network, whose ticks take on `clock` what `curve` says, whatever they take."""

    def __init__(self, clock: Clock, curve: CostCurve):
        tiny = tiny_runner()
        super().__init__(tiny.network, tiny.dtype, tiny.device)
        self.clock, self.curve = clock, curve

    def forward(self, layout: BatchLayout, buffers: Sequence[UpdateBuffers]) -> list[Tensor]:
        work = sum(sample.workload.work[sample.step_index] for sample in layout.samples)
        self.clock.now += self.curve.seconds_for(work)
        return super().forward(layout, buffers)
