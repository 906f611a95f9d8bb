"""Requests of many callers, shaped by what is published about public traces, and in plain shapes.

No trace was read. Published, and used here:

- GenTD26 (Alibaba, cluster-trace-v2026-GenAI; Lin et al., SoCC 2025): 3.5 million requests on more than 300
  GPUs, 104 base models, 20 to 50 steps, and GPUs whose median duty is 0 %, so most of them idle most of the
  time: the load comes in short peaks.
- Katz (Li et al., USENIX ATC 2025): 550,000 requests in 20 days from two services, which is one in three
  seconds, over days.

What is not published there, the lengths of peaks, the sizes of callers and the swing of a day, is ours.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from safelight.pipeline.capacity.comparison.device import CURVE, ROWS, TOKENS, capacity
from safelight.pipeline.params import Share
from safelight.pipeline.scheduling.simulation import SimulatedSample
from safelight.pipeline.scheduling.workload import SampleWorkload, make_workload

STEPS = (20, 30, 50)
MOST_WORK = float(max(STEPS) * max(ROWS))  # of an image
CAPACITY = capacity(sum(STEPS) / len(STEPS))  # images a second of a device
# The seconds until a deadline, as a multiple of those of the image alone: twice what it takes in full ticks.
DEADLINE_TIMES_ALONE = 10.0
DAY_SWING = 0.8  # of a day's rate around its mean, as in `safelight simulate --trace diurnal`
PEAK_TIMES_MEAN, PEAK_SECONDS, PEAK_PERIOD = 3.0, 4.0, 20.0
DUTY, DUTY_PERIOD = 0.4, 10.0  # of GenTD26's shape: busy for less than half of the time

# The rate as a multiple of the mean, by the time as a part of the whole span and in seconds.
RateShape = Callable[[float, float], float]


def steady(elapsed: float, now: float) -> float:
    """The same rate all the time."""
    return 1.0


def peaks(elapsed: float, now: float) -> float:
    """Peaks of some seconds, and less between them, so that the mean is 1."""
    part = PEAK_SECONDS / PEAK_PERIOD
    is_peak = now % PEAK_PERIOD < PEAK_SECONDS
    return PEAK_TIMES_MEAN if is_peak else (1.0 - PEAK_TIMES_MEAN * part) / (1.0 - part)


def on_off(elapsed: float, now: float) -> float:
    """All requests within a part of the time, nothing in the rest."""
    return 1.0 / DUTY if now % DUTY_PERIOD < DUTY * DUTY_PERIOD else 0.0


def one_day(elapsed: float, now: float) -> float:
    """A day, as short as the span: least at its ends, most in its middle."""
    return 1.0 - DAY_SWING * math.cos(2.0 * math.pi * elapsed)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A shape of arrivals.

    Attributes:
        name: In tables.
        load: Mean offered work, as a multiple of the capacity.
        shape: How the rate changes over time.
        peak: The most that `shape` returns.
        callers: Their number.
        skew: Exponent of Zipf's law for the callers' parts; 0: all send alike.
    """

    name: str
    load: float
    shape: RateShape = steady
    peak: float = 1.0
    callers: int = 20
    skew: float = 1.0


TRAFFIC = (
    Traffic("below-capacity", 0.8),
    Traffic("bursts", 0.9, peaks, PEAK_TIMES_MEAN),
    Traffic("overload", 2.0),
    Traffic("like-gentd26", 0.6, on_off, 1.0 / DUTY, callers=104),
    Traffic("like-katz", 0.9, one_day, 1.0 + DAY_SWING, callers=2),
)


def arrivals(traffic: Traffic, devices: int, seconds: float, seed: int) -> Iterator[SimulatedSample]:
    """A Poisson process of requests in order of time, by thinning (Lewis and Shedler 1979).

    Args:
        traffic: Its shape.
        devices: For whose capacity it is.
        seconds: Its length.
        seed: Of its randomness.
    """
    rng, now = random.Random(seed), 0.0
    kinds = [_workload(steps, rows) for steps in STEPS for rows in ROWS]
    shares = [Share(f"caller {number}") for number in range(traffic.callers)]
    weights = list(accumulate((number + 1) ** -traffic.skew for number in range(traffic.callers)))
    peak_rate = traffic.peak * traffic.load * CAPACITY * devices
    while (now := now + rng.expovariate(peak_rate)) < seconds:
        if rng.random() * traffic.peak > traffic.shape(now / seconds, now):
            continue
        workload = rng.choice(kinds)
        deadline = now + DEADLINE_TIMES_ALONE * workload.seconds_left[0]
        [share] = rng.choices(shares, cum_weights=weights)
        yield SimulatedSample(replace(workload, arrived=now, deadline=deadline, share=share))


def _workload(steps: int, rows: int) -> SampleWorkload:
    return make_workload([rows] * steps, [float(rows)] * steps, TOKENS, CURVE, 0.0)
