"""How many replicas a stage should have, from its waiting work and the rate at which work arrives."""

import math
from collections import deque
from dataclasses import dataclass, field

UTILISATION = 0.8  # share of a replica's time that may be used on average; the rest keeps queues short
LOOK_BACK = 10.0  # seconds over which the arrival rate of work is averaged


def target_replicas(work_left: float, offered: float, target_seconds: float) -> int:
    """The number of replicas that a stage needs; none without work.

    Enough to finish the waiting work within `target_seconds`, and enough to keep up with the arrival rate.
    The first term reacts to a burst at once. The second keeps replicas while they keep the queue short: by
    the queue alone, replicas would be started and stopped again and again.

    Args:
        work_left: Waiting work in device-seconds.
        offered: Device-seconds of new work a second (erlangs).
        target_seconds: Seconds within which the waiting work should be done.
    """
    return max(math.ceil(work_left / target_seconds), math.ceil(offered / UTILISATION))


@dataclass(slots=True)
class OfferedLoad:
    """Device-seconds of work that arrive a second (erlangs), from a running total; times in seconds."""

    look_back: float = LOOK_BACK
    _observations: deque[tuple[float, float]] = field(default_factory=deque)

    def observe(self, total: float, now: float) -> float:
        """Record that `total` device-seconds had arrived by `now`, and return the mean rate.

        The rate is that of the last `look_back` seconds, or since the first observation if that is later. It
        is never negative: `total` includes estimates, which may be corrected downwards.
        """
        observations = self._observations
        observations.append((now, total))
        while len(observations) > 2 and observations[1][0] <= now - self.look_back:
            observations.popleft()
        start, start_total = observations[0]
        return max(0.0, total - start_total) / (now - start) if now > start else 0.0
