"""What is asked for and when: Poisson arrivals of unlike requests, or a trace that was recorded."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

Body = dict[str, Any]


class InvalidTrace(ValueError):
    """A trace file that cannot be replayed; the message names the line."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is sent `at` seconds after the start, whatever became of those before it."""

    at: float
    body: Body


def any_body(rng: random.Random, sizes: Sequence[str]) -> Body:
    """One request of a mixed load, for one image."""
    return {
        "prompt": rng.choice(PROMPTS),
        "size": rng.choice(list(sizes)),
        "num_inference_steps": rng.choice(STEPS),
        "guidance_scale": rng.choice(GUIDANCE),
        "solver": rng.choice(SOLVERS),
        "seed": rng.randrange(2**31),
    }


def poisson(rate: float, seconds: float, sizes: Sequence[str], seed: int) -> list[Arrival]:
    """Arrivals at `rate` a second for so many seconds: the gaps are exponential, so bursts come as they do in life."""
    rng, now, arrivals = random.Random(seed), 0.0, list[Arrival]()
    while (now := now + rng.expovariate(rate)) < seconds:
        arrivals.append(Arrival(now, any_body(rng, sizes)))
    return arrivals


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> None:
    """A line of JSON each: `at` in seconds, and the request's `body`."""
    path.write_text(
        "".join(json.dumps({"at": round(each.at, 6), "body": each.body}) + "\n" for each in arrivals)
    )


def read_trace(path: Path, speed: float = 1.0) -> list[Arrival]:
    """The arrivals in `path`, in order of time, `speed` times as fast. Raises `InvalidTrace`."""
    arrivals = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            found = json.loads(line)
            arrivals.append(Arrival(float(found["at"]) / speed, dict(found["body"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidTrace(
                f'{path}, line {number}: want {{"at": seconds, "body": {{...}}}}: {error}'
            ) from None
    return sorted(arrivals, key=lambda each: each.at)
