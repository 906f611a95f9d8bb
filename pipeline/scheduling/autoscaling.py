"""How many replicas a stage should have, from the work that waits for them and the work that keeps coming."""

import math
from collections import deque
from dataclasses import dataclass, field

UTILISATION = 0.8  # of a replica's time, what may be asked for as a rule: the rest is what keeps queues short
LOOK_BACK = 10.0  # seconds over which the work that comes is averaged


def target_replicas(work_left: float, offered: float, target_seconds: float) -> int:
    """Replicas that `work_left` device-seconds of waiting work and `offered` device-seconds a second of new work ask for.

    Enough to have done what is here after `target_seconds`, and enough to keep up. The first answers a burst at once, the second
    stays while the queue is short because there are many: by the queue alone they would come and go. No work, no replicas.
    """
    return max(math.ceil(work_left / target_seconds), math.ceil(offered / UTILISATION))


@dataclass(slots=True)
class OfferedLoad:
    """Device-seconds of work that come in a second (erlangs), from a total that grows as work comes; times in seconds."""

    look_back: float = LOOK_BACK
    _seen: deque[tuple[float, float]] = field(default_factory=deque)

    def observe(self, total: float, now: float) -> float:
        """The mean over the last `look_back` seconds, once as much has been seen; before that, over what was seen."""
        self._seen.append((now, total))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self.look_back:
            self._seen.popleft()
        since, before = self._seen[0]
        return max(0.0, total - before) / (now - since) if now > since else 0.0
