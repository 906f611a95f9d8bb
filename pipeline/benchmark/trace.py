"""The benchmark's requests: Poisson arrivals of mixed images, the same on every machine.

The mean rate is one arrival a second; the replay scales the times, so that one trace serves any load.
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
    """A request for one image, `at` seconds after the start."""

    at: float
    params: GenerationParams


def make_trace(
    num_requests: int, sizes: Sequence[tuple[int, int]], seed: int = SEED
) -> tuple[TraceArrival, ...]:
    """The first `num_requests` arrivals, on average one a second; `sizes` are (width, height) in pixels.

    A longer trace begins with the shorter one.
    """
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    for number in range(num_requests):
        at += rng.expovariate(1.0)
        width, height = rng.choice(list(sizes))
        params = GenerationParams(
            prompt=rng.choice(PROMPTS),
            negative_prompt="",
            width=width,
            height=height,
            num_steps=rng.choice(STEPS),
            guidance_scale=rng.choice(GUIDANCE),
            solver=rng.choice(SOLVERS),
            seed=number,
        )
        arrivals.append(TraceArrival(at, params))
    return tuple(arrivals)
