"""The requests of the benchmark: Poisson arrivals of unlike images, the same on every machine.

Gaps are drawn for one arrival a second and scaled by whoever replays them, so that one trace serves any load.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from safelight.pipeline.params import GenerationParams

SEED = 20_261
STEPS = (8, 20, 30, 40)
GUIDANCE = (1.0, 4.0, 7.0)
SOLVERS = ("dpmpp_2m", "euler", "heun")
PROMPTS = (
    "a red apple",
    "cat face",
    "rocket",
    "umbrella",
    "pizza",
    "guitar",
    "police car",
    "a small green tree, flat style",
)


@dataclass(frozen=True, slots=True)
class TraceArrival:
    """An image asked for, `at` seconds after the start at one arrival a second on average."""

    at: float
    params: GenerationParams


def make_trace(
    num_requests: int, sizes: Sequence[tuple[int, int]], seed: int = SEED
) -> tuple[TraceArrival, ...]:
    """The first `num_requests` arrivals; `sizes` are (width, height). A longer trace begins with the shorter one."""
    drawn = random.Random(seed)
    arrivals, now = [], 0.0
    for number in range(num_requests):
        now += drawn.expovariate(1.0)
        width, height = drawn.choice(list(sizes))
        params = GenerationParams(
            prompt=drawn.choice(PROMPTS),
            negative_prompt="",
            width=width,
            height=height,
            num_steps=drawn.choice(STEPS),
            guidance_scale=drawn.choice(GUIDANCE),
            solver=drawn.choice(SOLVERS),
            seed=number,
        )
        arrivals.append(TraceArrival(now, params))
    return tuple(arrivals)
