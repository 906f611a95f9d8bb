"""Load shapes for locust: the number of users over time."""

import math
import os
from collections.abc import Callable

from locust import LoadTestShape

SECONDS = float(os.environ.get("SECONDS", "60"))
PEAK = int(os.environ.get("USERS", "16"))

LoadShape = Callable[[float], float]  # from the elapsed share of the time to the share of the peak users


def steady(_: float) -> float:
    return 1.0


def ramp(elapsed: float) -> float:
    return elapsed


def spike(elapsed: float) -> float:
    """All users in the middle third, a tenth of them before and after."""
    return 1.0 if 1 / 3 <= elapsed < 2 / 3 else 0.1


def diurnal(elapsed: float) -> float:
    """One day: a tenth of the users at night, all of them at noon."""
    return 0.1 + 0.9 * math.sin(math.pi * elapsed) ** 2


SHAPES: dict[str, LoadShape] = {"steady": steady, "ramp": ramp, "spike": spike, "diurnal": diurnal}


class Users(LoadTestShape):
    """Follows `shape` for `SECONDS`, then stops."""

    abstract = True
    shape: LoadShape = staticmethod(steady)

    def tick(self) -> tuple[int, float] | None:
        """The number of users and how many may start per second; None ends the test."""
        elapsed = self.get_run_time() / SECONDS  # type: ignore[no-untyped-call]
        if elapsed >= 1.0:
            return None
        return max(1, round(PEAK * self.shape(elapsed))), float(PEAK)
