"""How much work each caller has sent lately."""

import math

SECONDS = 10.0  # after which what was sent counts for 1/e
FORGOTTEN = 6 * SECONDS


class RecentLoad:
    """Exponentially weighted rates of the work that callers send."""

    def __init__(self) -> None:
        self._rates: dict[str, tuple[float, float]] = {}  # and when it was that; the latest last

    def add(self, caller: str, work: float, now: float) -> None:
        """A caller has sent work."""
        rate = self.rate(caller, now)
        self._rates.pop(caller, None)
        self._rates[caller] = rate + work / SECONDS, now
        while now - next(iter(self._rates.values()))[1] > FORGOTTEN:
            del self._rates[next(iter(self._rates))]

    def rate(self, caller: str, now: float) -> float:
        """Work a second."""
        rate, since = self._rates.get(caller, (0.0, now))
        return rate * math.exp((since - now) / SECONDS)
