"""Schedules of requests: Poisson arrivals of mixed requests, or a recorded trace."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The mix of `safelight bench`, repeated here because the load tests import none of the service's packages.
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
class ScheduledRequest:
    """A request to be sent `at` seconds after the start, whether or not earlier ones are answered."""

    at: float
    body: Body


def any_body(rng: random.Random, sizes: Sequence[str]) -> Body:
    """A random request of the mix, for one image."""
    return {
        "prompt": rng.choice(PROMPTS),
        "size": rng.choice(list(sizes)),
        "num_inference_steps": rng.choice(STEPS),
        "guidance_scale": rng.choice(GUIDANCE),
        "solver": rng.choice(SOLVERS),
        "seed": rng.randrange(2**31),
    }


def poisson(rate: float, seconds: float, sizes: Sequence[str], seed: int) -> list[ScheduledRequest]:
    """A Poisson process of mixed requests: `rate` a second for `seconds`, with exponential gaps."""
    rng = random.Random(seed)
    schedule: list[ScheduledRequest] = []
    at = 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        schedule.append(ScheduledRequest(at, any_body(rng, sizes)))
    return schedule


def write_trace(path: Path, schedule: Iterable[ScheduledRequest]) -> None:
    """Write one line of JSON per request: `at` in seconds, and the request's `body`."""
    path.write_text(
        "".join(json.dumps({"at": round(request.at, 6), "body": request.body}) + "\n" for request in schedule)
    )


def read_trace(path: Path, speed: float = 1.0) -> list[ScheduledRequest]:
    """The requests in `path` in order of time, `speed` times as fast.

    Raises `InvalidTrace` for a line that is not such a request.
    """
    schedule = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            fields = json.loads(line)
            schedule.append(ScheduledRequest(float(fields["at"]) / speed, dict(fields["body"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidTrace(
                f'{path}, line {number}: expected {{"at": seconds, "body": {{...}}}}: {error}'
            ) from None
    return sorted(schedule, key=lambda request: request.at)
