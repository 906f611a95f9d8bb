"""What a tick costs on this machine, measured: seconds against floating-point operations.

Never assumed to be a straight line: a tick has a fixed part, and a row is cheapest at a size that the caches decide.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

LEARNING = 0.05  # of each tick's error: a mean over the last twenty or so
GUESSED = 0.5  # the same, of a curve that nobody measured
STEADY = (0.2, 5.0)  # an error beyond these is a hiccup of the machine, not news of its speed
WORTH = 1.03  # a larger tick must do this much more in a second than a smaller one to be preferred


@dataclass(frozen=True, slots=True)
class CostCurve:
    """`seconds[k]` were measured for a tick of `work[k]` operations, `work` rising; straight lines between, and beyond the ends.

    `factor` is how much slower the machine is now than when it was measured.
    """

    work: tuple[float, ...]
    seconds: tuple[float, ...]
    factor: float = 1.0

    def __post_init__(self) -> None:
        if len(self.work) != len(self.seconds) or not self.work or list(self.work) != sorted(set(self.work)):
            raise ValueError("a cost curve needs as many seconds as work, and work that rises")
        if min(self.work) <= 0 or min(self.seconds) <= 0 or list(self.seconds) != sorted(self.seconds):
            raise ValueError("work and seconds of a cost curve must be positive, and more work must not cost less")

    def seconds_for(self, work: float) -> float:
        """How long a tick of `work` operations takes now."""
        if len(self.work) == 1 or work < self.work[0]:
            return self.factor * self.seconds[0] * max(work / self.work[0], 0.5 if len(self.work) > 1 else 0.0)
        right = min(max(bisect_left(self.work, work), 1), len(self.work) - 1)
        (left_work, right_work), (left, own) = self.work[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return self.factor * (left + (own - left) / (right_work - left_work) * (work - left_work))

    @property
    def best_work(self) -> float:
        """The least work of a tick beyond which more of it does not get more done in a second; infinite if it still does at the end."""
        rates = [work / seconds for work, seconds in zip(self.work, self.seconds, strict=True)]
        best = next(k for k, rate in enumerate(rates) if rate * WORTH >= max(rates))
        return self.work[best] if best < len(rates) - 1 else float("inf")

    def observed(self, work: float, seconds: float) -> CostCurve:
        """The curve after a tick of `work` that took `seconds`."""
        error = seconds / self.seconds_for(work)
        if len(self.work) == 1:  # a guess, not a measurement
            return replace(self, factor=self.factor * error**GUESSED)
        if not STEADY[0] < error < STEADY[1]:
            return self
        return replace(self, factor=self.factor * error**LEARNING)


UNKNOWN = CostCurve((1e9,), (1e-2,))  # until it is measured: in proportion to the work
