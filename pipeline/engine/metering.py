"""What ticks and samples cost: the cost curve, corrected by every tick, and the usage of every sample."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from safelight.pipeline.engine.sample import QueuedSample, RunningSample
from safelight.pipeline.params import DenoiseUsage, Share, StageCost
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import FairShares
from safelight.pipeline.scheduling.selection import full_tick_seconds, passed_over

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


@dataclass(frozen=True, slots=True)
class TickWork:
    """What a tick computes for each of its samples, as it was when the tick began."""

    samples: tuple[RunningSample, ...]
    rows: tuple[int, ...]
    works: tuple[float, ...]  # operations
    expected_seconds: tuple[float, ...]  # by the curve
    is_probe: bool

    @property
    def tokens(self) -> int:
        """Image tokens of all rows."""
        pairs = zip(self.samples, self.rows, strict=True)
        return sum(num_rows * sample.workload.tokens for sample, num_rows in pairs)


class Metering:
    """The cost curve of an engine, the record of its last tick, and what each caller has had."""

    def __init__(self, curve: CostCurve):
        self.curve = curve
        self.shares = FairShares()
        self.last_tick: TickRecord | None = None
        self._num_ticks = 0

    def start_tick(self) -> CostCurve:
        """Count a tick; returns the curve by which its samples are selected."""
        self._num_ticks += 1
        return self.curve.uncapped() if self._is_probe else self.curve

    def record_idle_tick(self) -> None:
        """Record a tick without samples."""
        self.last_tick = TickRecord(0, 0, 0.0, 0)

    def work_of(self, samples: Sequence[RunningSample]) -> TickWork:
        """The work of the next tick of `samples`, after `start_tick`."""
        works = tuple(sample.workload.work[sample.step_index] for sample in samples)
        flops = sum(works)
        seconds = self.curve.seconds_for(flops)
        return TickWork(
            samples=tuple(samples),
            rows=tuple(sample.workload.rows[sample.step_index] for sample in samples),
            works=works,
            expected_seconds=tuple(seconds * work / flops for work in works),
            is_probe=self._is_probe,
        )

    def charge_tick(self, tick: TickWork, running: Iterable[RunningSample], waiting: Set[Share]) -> None:
        """Charge the callers of a tick that is queued by what it is expected to take.

        Args:
            tick: The tick.
            running: The samples that it was selected from, those that it starts included.
            waiting: Who else has samples waiting.
        """
        packets = [
            (sample.workload.share, seconds)
            for sample, seconds in zip(tick.samples, tick.expected_seconds, strict=True)
        ]
        waiting = waiting | passed_over(running, tick.samples)
        self.shares.dispatch(packets, waiting, full_tick_seconds(self.curve))

    def settle(self, sample: QueuedSample | RunningSample) -> None:
        """Charge the caller of a sample that leaves with what it was not charged with in ticks."""
        sample.settle()
        if seconds := sample.take_uncharged_seconds():
            self.shares.charge(sample.workload.share, seconds)

    def record_tick(self, tick: TickWork, seconds: float) -> None:
        """Correct the curve by a tick that is done, and charge samples and callers with its seconds."""
        flops = sum(tick.works)
        expected = self.curve.seconds_for(flops)
        update = self.curve.updated_by_probe if tick.is_probe else self.curve.updated
        self.curve = update(flops, seconds)
        packets: list[tuple[Share, float]] = []
        for sample, work in zip(tick.samples, tick.works, strict=True):
            sample.settle()
            sample.device_seconds += seconds * work / flops
            packets.append((sample.workload.share, sample.take_uncharged_seconds()))
        self.shares.measure(packets)
        self.last_tick = TickRecord(sum(tick.rows), tick.tokens, seconds, int(flops), expected)

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
