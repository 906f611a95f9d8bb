"""How many users there are as time goes by."""

import math
import os
from collections.abc import Callable

from locust import LoadTestShape

SECONDS = float(os.environ.get("SECONDS", "60"))
PEAK = int(os.environ.get("USERS", "16"))

Curve = Callable[[float], float]  # of the share of the time that is over, the share of the most users


def steady(_: float) -> float:
    return 1.0


def ramp(share: float) -> float:
    return share


def spike(share: float) -> float:
    """A tenth, all at once in the middle third, a tenth again."""
    return 1.0 if 1 / 3 <= share < 2 / 3 else 0.1


def diurnal(share: float) -> float:
    """Night, morning, the peak of the day, evening, night."""
    return 0.1 + 0.9 * math.sin(math.pi * share) ** 2


SHAPES: dict[str, Curve] = {"steady": steady, "ramp": ramp, "spike": spike, "diurnal": diurnal}


class Users(LoadTestShape):
    """`curve` over `SECONDS`, then the end."""

    abstract = True
    curve: Curve = staticmethod(steady)

    def tick(self) -> tuple[int, float] | None:
        over = self.get_run_time() / SECONDS
        if over >= 1.0:
            return None
        return max(1, round(PEAK * self.curve(over))), float(PEAK)
