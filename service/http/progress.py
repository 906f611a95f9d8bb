"""Estimates how far a request is, from how long a step took in the requests before it."""

import threading

SMOOTHING = 0.2  # weight of the latest request in the mean seconds of a step
LEAST, MOST = 0.01, 0.99  # of a request that is being answered


class ProgressEstimator:
    """The mean time of a model's step, over this gateway's latest requests; waiting is part of it."""

    def __init__(self) -> None:
        self._seconds_per_step: dict[str, float] = {}  # by the id of the model
        self._lock = threading.Lock()

    def observe(self, model_id: str, seconds: float, num_steps: int) -> None:
        """Learn from a request that took so long, whose images were drawn at the same time."""
        with self._lock:
            latest = seconds / max(num_steps, 1)
            mean = self._seconds_per_step.get(model_id, latest)
            self._seconds_per_step[model_id] = mean + SMOOTHING * (latest - mean)

    def estimate(self, model_id: str, elapsed: float, num_steps: int) -> tuple[float, float]:
        """How far a request is after `elapsed` seconds, and the seconds that it still needs.

        The first is at least `LEAST` and at most `MOST`. Before the model has answered a request nothing is
        known: `LEAST` and 0.
        """
        expected = self._seconds_per_step.get(model_id, 0.0) * num_steps
        if not expected:
            return LEAST, 0.0
        return min(max(elapsed / expected, LEAST), MOST), max(expected - elapsed, 0.0)
