"""The workload of a sample, tick by tick, and the priority that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from safelight.pipeline.params import NOT_URGENT, ONLY_CALLER, Share, Urgency
from safelight.pipeline.scheduling.cost_curve import CostCurve

# Near 0: first come, first served. Large: shortest remaining time first. Simulated in docs/performance.md.
MAX_SLOWDOWN = 10.0


@dataclass(frozen=True, slots=True)
class SampleWorkload:
    """What each tick of a sample takes. Times are seconds by `time.perf_counter`."""

    arrived: float
    deadline: float  # infinite if there is none
    rows: tuple[int, ...]  # network rows of each tick
    work: tuple[float, ...]  # floating-point operations of each tick
    tokens: int  # image tokens of a row
    # Seconds that ticks k, k + 1, ... take alone, at the speed when the curve was measured; the last is 0.
    seconds_left: tuple[float, ...]
    share: Share = ONLY_CALLER
    urgency: Urgency = NOT_URGENT
    full_tick_seconds: float = 0.0  # of the largest tick that is worth its length, as `seconds_left`

    @property
    def num_ticks(self) -> int:
        return len(self.rows)

    def priority(self, step: int, now: float, slowdown: float) -> tuple[bool, int, float]:
        """The sort key before tick `step`, smallest first: whether it will be too late, and `order_key`.

        `slowdown` is the slowdown of the cost curve at present.
        """
        remaining = slowdown * self.seconds_left[step]
        in_full_ticks = slowdown * self.full_tick_seconds * (self.num_ticks - step)
        key = order_key(self.urgency, self.arrived, remaining, in_full_ticks)
        return now + remaining > self.deadline, *key


def order_key(urgency: Urgency, arrived: float, remaining: float, in_full_ticks: float) -> tuple[int, float]:
    """The place of a sample among those of its caller: the smallest first.

    A sample is due when MAX_SLOWDOWN times its remaining seconds have passed since it arrived.
    So the shortest go first, and no sample that arrives after the due time of another overtakes it.
    One with a promise is due no later than when it must start to keep it, if all its ticks are full; one in
    the background not before.

    Args:
        urgency: The sample's promise and level.
        arrived: When the sample arrived.
        remaining: Seconds that its remaining ticks take alone.
        in_full_ticks: Seconds that its remaining ticks take if all are full.
    """
    latest = urgency.promise - in_full_ticks
    due = latest if urgency.is_background else min(arrived + MAX_SLOWDOWN * remaining, latest)
    return -urgency.level, due


def make_workload(
    rows: Sequence[int],
    work: Sequence[float],
    tokens: int,
    curve: CostCurve,
    arrived: float,
    deadline: float = math.inf,
    urgency: Urgency = NOT_URGENT,
) -> SampleWorkload:
    """The workload of a sample with its remaining seconds by a cost curve.

    Args:
        rows: Network rows of each tick.
        work: Floating-point operations of each tick, all its rows together.
        tokens: Image tokens of a row.
        curve: The cost curve of the machine.
        arrived: When the sample arrived, seconds by `time.perf_counter`.
        deadline: When the image becomes useless, by the same clock.
        urgency: Its promise and level.

    Returns:
        The workload; its `seconds_left` do not include the present slowdown of `curve`.
    """
    seconds = {flops: curve.seconds_for(flops) / curve.slowdown for flops in set(work)}
    seconds_left = tuple(accumulate((seconds[flops] for flops in reversed(work)), initial=0.0))[::-1]
    full = curve.seconds_for(min(curve.best_work, curve.work[-1])) / curve.slowdown
    return SampleWorkload(
        arrived,
        deadline,
        tuple(rows),
        tuple(work),
        tokens,
        seconds_left,
        urgency=urgency,
        full_tick_seconds=full,
    )
