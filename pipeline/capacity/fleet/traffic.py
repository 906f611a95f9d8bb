"""How many requests come at what time of the day."""

import math
import random
from collections.abc import Callable, Iterator

DAY = 86_400.0
PEAK_HOUR = 14.0
SWING = 0.8  # of the mean, up and down: the night has a ninth of the afternoon
SPIKE_TIMES, SPIKE_SECONDS = 5.0, 600.0

Shape = Callable[
    [float, float], float
]  # the rate at a time, of a trace of so many seconds, as a multiple of the mean


def steady(now: float, seconds: float) -> float:
    return 1.0


def diurnal(now: float, seconds: float) -> float:
    """A cosine over the day, highest in the afternoon."""
    return 1.0 + SWING * math.cos(2 * math.pi * (now / DAY - PEAK_HOUR / 24.0))


def spike(now: float, seconds: float) -> float:
    """Five times as much for ten minutes in the middle, or for a tenth of a short trace."""
    width = min(SPIKE_SECONDS, seconds / 10)
    return SPIKE_TIMES if abs(now - seconds / 2) <= width / 2 else 1.0


SHAPES: dict[str, Shape] = {"steady": steady, "diurnal": diurnal, "spike": spike}
HIGHEST: dict[str, float] = {"steady": 1.0, "diurnal": 1.0 + SWING, "spike": SPIKE_TIMES}


def arrivals(rate: float, shape: str, seconds: float, rng: random.Random) -> Iterator[float]:
    """Times of a Poisson process whose mean rate, a second, is `rate` times the shape (by thinning, Lewis and Shedler 1979)."""
    of, highest, now = SHAPES[shape], rate * HIGHEST[shape], 0.0
    while (now := now + rng.expovariate(highest)) < seconds:
        if rng.random() * HIGHEST[shape] <= of(now, seconds):
            yield now
