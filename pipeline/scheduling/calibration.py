"""How far forecasts are from what happens: quantiles of their recent ratios."""

from bisect import bisect_left, insort
from collections import deque

WINDOW = 256  # ratios that are kept
# As if these had been seen, until there are enough: forecasts of a device that was just measured are good.
PRIOR = (0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.1, 1.2) * 4
MAX_RATIO = 4.0  # a larger one is a disturbance, and counts as this


class RatioQuantiles:
    """A running distribution of the ratios of actual to forecast seconds."""

    def __init__(self) -> None:
        self._ratios = deque(PRIOR, maxlen=WINDOW)
        self._sorted = sorted(PRIOR)

    def add(self, ratio: float) -> None:
        """Add a ratio; the oldest one goes."""
        ratio = min(max(ratio, 1.0 / MAX_RATIO), MAX_RATIO)
        if len(self._ratios) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._ratios[0])]
        self._ratios.append(ratio)
        insort(self._sorted, ratio)

    def quantile(self, probability: float) -> float:
        """The ratio that is not exceeded with this probability."""
        position = min(int(probability * len(self._sorted)), len(self._sorted) - 1)
        return self._sorted[position]
