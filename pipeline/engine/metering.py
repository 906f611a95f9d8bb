"""What ticks and samples cost: the cost curve, corrected by every tick, and the usage of every sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from safelight.pipeline.engine.sample import QueuedSample, RunningSample
from safelight.pipeline.params import DenoiseUsage, StageCost
from safelight.pipeline.scheduling.cost_curve import CostCurve

# Every how many ticks one may exceed the curve's best work, to measure what such ticks cost now.
PROBE_INTERVAL = 64


@dataclass(frozen=True, slots=True)
class TickRecord:
    """What a tick did."""

    rows: int
    tokens: int  # image tokens of all rows
    seconds: float
    flops: int
    expected_seconds: float = 0.0  # by the curve before this tick corrected it


class Metering:
    """The cost curve of an engine, and the record of its last tick."""

    def __init__(self, curve: CostCurve):
        self.curve = curve
        self.last_tick: TickRecord | None = None
        self._num_ticks = 0

    def start_tick(self) -> CostCurve:
        """Count a tick; returns the curve by which its samples are selected."""
        self._num_ticks += 1
        return self.curve.uncapped() if self._is_probe else self.curve

    def record_idle_tick(self) -> None:
        """Record a tick without samples."""
        self.last_tick = TickRecord(0, 0, 0.0, 0)

    def record_tick(self, samples: Sequence[RunningSample], seconds: float) -> None:
        """Correct the curve by the tick that `samples` have just done, and attribute its seconds to them."""
        rows = [sample.workload.rows[sample.step_index - 1] for sample in samples]
        works = [sample.workload.work[sample.step_index - 1] for sample in samples]
        flops = sum(works)
        expected = self.curve.seconds_for(flops)
        update = self.curve.updated_by_probe if self._is_probe else self.curve.updated
        self.curve = update(flops, seconds)
        for sample, work in zip(samples, works, strict=True):
            sample.device_seconds += seconds * work / flops
        tokens = sum(
            num_rows * sample.workload.tokens for sample, num_rows in zip(samples, rows, strict=True)
        )
        self.last_tick = TickRecord(sum(rows), tokens, seconds, int(flops), expected)

    @property
    def _is_probe(self) -> bool:
        return self._num_ticks % PROBE_INTERVAL == 0


def usage_of(
    sample: QueuedSample | RunningSample, queue_seconds: float, is_batch_invariant: bool
) -> DenoiseUsage:
    """What a sample has used up to its last tick.

    Rows, tokens and operations follow from the ticks done, so a tick need not add them up.
    """
    ticks, workload = sample.step_index, sample.workload
    rows = sum(workload.rows[:ticks])
    flops = sample.setup_flops + sum(map(int, workload.work[:ticks]))
    return DenoiseUsage(
        ticks=ticks,
        nfe=ticks,
        rows=rows,
        tokens=rows * workload.tokens,
        cost=StageCost(sample.device_seconds, flops, queue_seconds),
        is_batch_invariant=is_batch_invariant,
    )
