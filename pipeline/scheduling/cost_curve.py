"""What a tick costs on this machine, measured: seconds against floating-point operations.

Never assumed to be a straight line: a tick has a fixed part, and a row is cheapest at a size that the caches decide.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

EMA_TICKS = 20  # ticks: the factor is a mean over as many
SHAPE_RATE = 0.2  # of what the factor learns from a tick, the points beside its work learn as well
PROBE_RATE = 0.3  # of its error, what the point beside a tick learns that is as large only now and then
MAX_ERROR_RATIO = 2.0  # an error beyond this is one of the machine rather than news of its speed, and counts as no more than this
MIN_RELATIVE_THROUGHPUT = 0.9  # a larger tick that does less than this much of what the best does in a second is not worth its length


@dataclass(frozen=True, slots=True)
class CostCurve:
    """`seconds[k]` were measured for a tick of `work[k]` operations, `work` rising; straight lines between, and beyond the ends.

    `factor` is how much slower the machine is now than when it was measured, learnt from `ticks_seen` ticks at most.
    """

    work: tuple[float, ...]
    seconds: tuple[float, ...]
    slowdown: float = 1.0
    ticks_seen: int = EMA_TICKS  # 0: a guess that nobody measured, which follows the first tick entirely

    def __post_init__(self) -> None:
        if len(self.work) != len(self.seconds) or not self.work or list(self.work) != sorted(set(self.work)):
            raise ValueError("a cost curve needs as many seconds as work, and work that rises")
        if min(self.work) <= 0 or min(self.seconds) <= 0 or list(self.seconds) != sorted(self.seconds):
            raise ValueError(
                "work and seconds of a cost curve must be positive, and more work must not cost less"
            )

    def seconds_for(self, work: float) -> float:
        """How long a tick of `work` operations takes now."""
        if len(self.work) == 1 or work < self.work[0]:
            return (
                self.slowdown * self.seconds[0] * max(work / self.work[0], 0.5 if len(self.work) > 1 else 0.0)
            )
        right = min(max(bisect_left(self.work, work), 1), len(self.work) - 1)
        (left_work, right_work), (left, own) = (
            self.work[right - 1 : right + 1],
            self.seconds[right - 1 : right + 1],
        )
        return self.slowdown * (left + (own - left) / (right_work - left_work) * (work - left_work))

    @property
    def best_work(self) -> float:
        """The most work of a tick that is worth its length: where the next larger one that was measured loses, the middle between them.

        Infinite if none loses. The middle, because a tick has never exactly the work of one that was measured.
        """
        rates = [work / seconds for work, seconds in zip(self.work, self.seconds, strict=True)]
        last = max(k for k, rate in enumerate(rates) if rate >= MIN_RELATIVE_THROUGHPUT * max(rates))
        return math.sqrt(self.work[last] * self.work[last + 1]) if last + 1 < len(rates) else math.inf

    def uncapped(self) -> CostCurve:
        """The curve without a best tick. Where ticks are never larger, nobody would ever see that they have become worth it."""
        return replace(self, work=self.work[:1], seconds=self.seconds[:1])

    def updated(self, work: float, seconds: float) -> CostCurve:
        """The curve after a tick of `work` that took `seconds`: another speed mostly, and a little another shape."""
        error = self._error(work, seconds)
        rate = 1.0 / min(self.ticks_seen + 1, EMA_TICKS)
        return replace(
            self,
            seconds=self._with_point_scaled(work, math.exp(SHAPE_RATE * rate * error))
            if len(self.work) > 1
            else self.seconds,
            slowdown=self.slowdown * math.exp(rate * error),
            ticks_seen=min(self.ticks_seen + 1, EMA_TICKS),
        )

    def updated_by_probe(self, work: float, seconds: float) -> CostCurve:
        """The curve after a tick that was let be larger than the best: news of the shape alone, and rare."""
        return (
            replace(
                self, seconds=self._with_point_scaled(work, math.exp(PROBE_RATE * self._error(work, seconds)))
            )
            if len(self.work) > 1
            else self
        )

    def _error(self, work: float, seconds: float) -> float:
        """The logarithm of how many times longer than told a tick took; of a curve that is no guess, no hiccup's."""
        error = math.log(seconds / self.seconds_for(work))
        return (
            min(max(error, -math.log(MAX_ERROR_RATIO)), math.log(MAX_ERROR_RATIO))
            if self.ticks_seen > 0
            else error
        )

    def _with_point_scaled(self, work: float, by: float) -> tuple[float, ...]:
        """The seconds with those of the point nearest to `work` multiplied; more work still does not cost less."""
        right = min(max(bisect_left(self.work, work), 1), len(self.work) - 1)
        k = right if work * work > self.work[right - 1] * self.work[right] else right - 1
        least, most = (
            self.seconds[k - 1] if k else 0.0,
            self.seconds[k + 1] if k + 1 < len(self.seconds) else math.inf,
        )
        return (*self.seconds[:k], min(max(self.seconds[k] * by, least), most), *self.seconds[k + 1 :])


UNKNOWN = CostCurve((1e9,), (1e-2,), ticks_seen=0)  # until it is measured: in proportion to the work
