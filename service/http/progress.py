"""Estimates how far a request is, from how long a step took in the requests before it."""

import threading

SMOOTHING = 0.2  # weight of the latest request in the mean seconds of a step
LEAST, MOST = 0.01, 0.99  # of a request that is being answered


class ProgressEstimator:
    """The mean time of an image's step, over this gateway's latest requests; waiting is part of it."""

    def __init__(self) -> None:
        self._seconds_per_step = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float, num_steps: int) -> None:
        """Learn from a request that took so long, whose images were drawn at the same time."""
        with self._lock:
            weight = SMOOTHING if self._seconds_per_step else 1.0
            self._seconds_per_step += weight * (seconds / max(num_steps, 1) - self._seconds_per_step)

    def estimate(self, elapsed: float, num_steps: int) -> tuple[float, float]:
        """How far a request is after `elapsed` seconds, and the seconds that it still needs.

        The first is at least `LEAST` and at most `MOST`. Before a request has been answered nothing is known:
        `LEAST` and 0.
        """
        expected = self._seconds_per_step * num_steps
        if not expected:
            return LEAST, 0.0
        return min(max(elapsed / expected, LEAST), MOST), max(expected - elapsed, 0.0)
