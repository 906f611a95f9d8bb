"""When requests arrive: Poisson processes with a constant, a daily and a spiked rate."""

import math
import random
from collections.abc import Callable, Iterator

DAY = 86_400.0
PEAK_HOUR = 14.0
SWING = 0.8  # amplitude as a share of the mean: the night has a ninth of the afternoon's rate
SPIKE_FACTOR, SPIKE_SECONDS = 5.0, 600.0

# The rate as a multiple of the mean, by the time in seconds and the length of the whole trace.
Shape = Callable[[float, float], float]


def steady(now: float, seconds: float) -> float:
    """A constant rate."""
    return 1.0


def diurnal(now: float, seconds: float) -> float:
    """A cosine over the day, highest in the afternoon."""
    return 1.0 + SWING * math.cos(2 * math.pi * (now / DAY - PEAK_HOUR / 24.0))


def spike(now: float, seconds: float) -> float:
    """Five times the rate for ten minutes in the middle, or for a tenth of a short trace."""
    width = min(SPIKE_SECONDS, seconds / 10)
    return SPIKE_FACTOR if abs(now - seconds / 2) <= width / 2 else 1.0


SHAPES: dict[str, Shape] = {"steady": steady, "diurnal": diurnal, "spike": spike}
PEAKS: dict[str, float] = {"steady": 1.0, "diurnal": 1.0 + SWING, "spike": SPIKE_FACTOR}


def arrivals(rate: float, shape: str, seconds: float, rng: random.Random) -> Iterator[float]:
    """Arrival times of a Poisson process, by thinning (Lewis and Shedler 1979).

    Args:
        rate: requests a second where the shape is 1.
        shape: a name in `SHAPES`.
        seconds: length of the trace.
        rng: source of randomness.

    Returns:
        Times in seconds, ascending.
    """
    relative_rate, peak, now = SHAPES[shape], PEAKS[shape], 0.0
    while (now := now + rng.expovariate(rate * peak)) < seconds:
        if rng.random() * peak <= relative_rate(now, seconds):
            yield now
