"""How often a service that was lost is started again."""

from collections import deque

WINDOW_SECONDS = 600.0


class Restarts:
    """Allows a number of restarts within ten minutes.

    Args:
        max_restarts: The number.
    """

    def __init__(self, max_restarts: int):
        self._max_restarts = max_restarts
        self._times: deque[float] = deque()
        self.number = 0  # so far

    def take(self, now: float) -> bool:
        """Whether the service may be started again at the time `now` in seconds; counts it if so."""
        while self._times and self._times[0] <= now - WINDOW_SECONDS:
            self._times.popleft()
        if len(self._times) >= self._max_restarts:
            return False
        self._times.append(now)
        self.number += 1
        return True
