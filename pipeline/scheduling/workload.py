"""A sample as the batcher and the forecast see it: what each of its ticks asks for, and by when it should be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from safelight.pipeline.scheduling.cost_curve import CostCurve

MAX_SLOWDOWN = (
    10.0  # small: first come, first served; large: the soonest done. Simulated in docs/performance.md
)


@dataclass(frozen=True, slots=True)
class SampleWorkload:
    """Rows and work (floating-point operations) of each tick, image tokens of a row; times are by `time.perf_counter`."""

    arrived: float
    deadline: float  # infinite if there is none
    rows: tuple[int, ...]
    work: tuple[float, ...]
    tokens: int
    left: tuple[
        float, ...
    ]  # seconds that ticks k, k + 1, ... take alone, at the speed at which the curve was measured; the last is 0

    @property
    def num_ticks(self) -> int:
        return len(self.rows)

    def due(self, step: int, now: float, slowness: float) -> tuple[bool, float]:
        """What a sample is sorted by, the smallest first: whether it can no longer be in time, then when it is due.

        Everyone is due when MAX_SLOWDOWN times the seconds that are left to it have gone by since it arrived: the soonest done go first,
        and nobody who comes after that moment is ever ahead. `slowness` is a cost curve's factor now.
        """
        left = slowness * self.left[step]
        return now + left > self.deadline, self.arrived + MAX_SLOWDOWN * left


def make_workload(
    rows: Sequence[int],
    work: Sequence[float],
    tokens: int,
    curve: CostCurve,
    arrived: float,
    deadline: float = math.inf,
) -> SampleWorkload:
    """The load of a sample that has so many `rows` in each tick, of so much `work` together, each of so many `tokens`."""
    seconds = {each: curve.seconds_for(each) / curve.slowdown for each in set(work)}
    left = tuple(accumulate((seconds[each] for each in reversed(work)), initial=0.0))[::-1]
    return SampleWorkload(arrived, deadline, tuple(rows), tuple(work), tokens, left)
