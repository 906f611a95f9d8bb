"""What a tick costs on this machine, as measured: seconds against floating-point operations.

Not a straight line: a tick has a fixed part, and the caches decide at which size a row is cheapest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

EMA_TICKS = 20  # ticks that the slowdown is averaged over
SHAPE_RATE = 0.2  # share of a tick's correction of the slowdown that also moves the point nearest to its work
PROBE_RATE = 0.3  # share of a probe's error that moves the point nearest to its work; large: probes are rare
MAX_ERROR_RATIO = 2.0  # larger errors are disturbances of the machine, not its speed, and are clipped to this
MIN_RELATIVE_THROUGHPUT = 0.9  # of the best; a larger tick of less throughput is not worth its length


@dataclass(frozen=True, slots=True)
class CostCurve:
    """A piecewise linear cost curve: a tick of `work[k]` operations took `seconds[k]`, `work` rising.

    The last line is extended beyond the end. The present estimate is the curve times `slowdown`.
    Raises `ValueError` unless `work` rises, `seconds` do not fall, and all are positive.
    """

    work: tuple[float, ...]
    seconds: tuple[float, ...]
    slowdown: float = 1.0  # of the machine since the curve was measured
    ticks_seen: int = EMA_TICKS  # averaged into `slowdown`; 0: a guess, which the first tick replaces

    def __post_init__(self) -> None:
        if len(self.work) != len(self.seconds) or not self.work or list(self.work) != sorted(set(self.work)):
            raise ValueError("a cost curve needs as many seconds as work, and work that rises")
        if min(self.work) <= 0 or min(self.seconds) <= 0 or list(self.seconds) != sorted(self.seconds):
            raise ValueError(
                "work and seconds of a cost curve must be positive, and more work must not cost less"
            )

    def seconds_for(self, work: float) -> float:
        """The seconds that a tick of `work` operations takes at present.

        Below the first point they fall in proportion to the work, at most by half.
        On a curve of one point they are proportional everywhere.
        """
        if len(self.work) == 1 or work < self.work[0]:
            floor = 0.5 if len(self.work) > 1 else 0.0
            return self.slowdown * self.seconds[0] * max(work / self.work[0], floor)
        k = min(max(bisect_left(self.work, work), 1), len(self.work) - 1)
        (work_lo, work_hi), (seconds_lo, seconds_hi) = self.work[k - 1 : k + 1], self.seconds[k - 1 : k + 1]
        slope = (seconds_hi - seconds_lo) / (work_hi - work_lo)
        return self.slowdown * (seconds_lo + slope * (work - work_lo))

    @property
    def best_work(self) -> float:
        """The most work that is worth putting into one tick; infinite if no measured tick was too large.

        It is the geometric mean of the largest measured tick that is worth its length and the next one,
        because a tick rarely has exactly the work of a measured one.
        """
        rates = [work / seconds for work, seconds in zip(self.work, self.seconds, strict=True)]
        last = max(k for k, rate in enumerate(rates) if rate >= MIN_RELATIVE_THROUGHPUT * max(rates))
        return math.sqrt(self.work[last] * self.work[last + 1]) if last + 1 < len(rates) else math.inf

    def uncapped(self) -> CostCurve:
        """The first point alone, for a probe: time is proportional to work, and `best_work` infinite."""
        return replace(self, work=self.work[:1], seconds=self.seconds[:1])

    def updated(self, work: float, seconds: float) -> CostCurve:
        """The curve after a tick of `work` took `seconds`: `slowdown` moves, and the shape a little."""
        error = self._error(work, seconds)
        num_ticks = min(self.ticks_seen + 1, EMA_TICKS)
        rate = 1.0 / num_ticks
        points = self.seconds
        if len(self.work) > 1:
            points = self._with_point_scaled(work, math.exp(SHAPE_RATE * rate * error))
        return replace(
            self, seconds=points, slowdown=self.slowdown * math.exp(rate * error), ticks_seen=num_ticks
        )

    def updated_by_probe(self, work: float, seconds: float) -> CostCurve:
        """The curve after a probe, a tick that was allowed to exceed `best_work`.

        The point nearest to `work` moves by `PROBE_RATE` of the error; `slowdown` stays. A curve of one point
        has no shape and stays as it is.
        """
        if len(self.work) == 1:
            return self
        factor = math.exp(PROBE_RATE * self._error(work, seconds))
        return replace(self, seconds=self._with_point_scaled(work, factor))

    def _error(self, work: float, seconds: float) -> float:
        """log(measured / predicted), clipped to +-log(MAX_ERROR_RATIO) unless the curve is a guess."""
        error = math.log(seconds / self.seconds_for(work))
        if self.ticks_seen == 0:
            return error
        return min(max(error, -math.log(MAX_ERROR_RATIO)), math.log(MAX_ERROR_RATIO))

    def _with_point_scaled(self, work: float, factor: float) -> tuple[float, ...]:
        """`seconds` with the point nearest to `work` scaled, but kept between the points beside it."""
        hi = min(max(bisect_left(self.work, work), 1), len(self.work) - 1)
        k = hi if work * work > self.work[hi - 1] * self.work[hi] else hi - 1
        lower = self.seconds[k - 1] if k else 0.0
        upper = self.seconds[k + 1] if k + 1 < len(self.seconds) else math.inf
        scaled = min(max(self.seconds[k] * factor, lower), upper)
        return (*self.seconds[:k], scaled, *self.seconds[k + 1 :])


UNKNOWN = CostCurve((1e9,), (1e-2,), ticks_seen=0)  # the guess before any measurement, proportional to work
