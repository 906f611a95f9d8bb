"""Locust users: each requests an image, waits for it, checks it, pauses, and repeats: a closed loop.

locust -f loadtests/users.py --host http://127.0.0.1:8000            with locust's web page on port 8089
SHAPE=spike locust -f loadtests/users.py --headless --host ...       a shape of `loadtests.shapes`
"""

import os
import random

from locust import FastHttpUser, between, events, task
from locust.env import Environment

from loadtests.image_checks import fault_of
from loadtests.replay import ROUTE
from loadtests.shapes import SHAPES, Users
from loadtests.traces import any_body

SIZES = os.environ.get("SIZES", "auto").split(",")
MAX_FAIL_RATIO = float(os.environ.get("MAX_FAIL_RATIO", "0"))
MAX_P95_MS = float(os.environ.get("MAX_P95_MS", "inf"))


class ImageUser(FastHttpUser):
    """A user who sends mixed requests."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        self.rng = random.Random()

    @task
    def draw(self) -> None:
        body = any_body(self.rng, SIZES)
        with self.client.post(
            ROUTE, json=body, name=f"{body['num_inference_steps']} steps", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif (fault := fault_of(body, response.json())) is not None:
                response.failure(fault)


if "SHAPE" in os.environ:

    class Shape(Users):
        """The shape that the environment variable SHAPE names."""

        shape = staticmethod(SHAPES[os.environ["SHAPE"]])


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def fail_the_run(environment: Environment, **_: object) -> None:
    """Set locust's exit status to 1 if a threshold was missed."""
    total = environment.stats.total
    if (
        total.num_requests == 0
        or total.fail_ratio > MAX_FAIL_RATIO
        or total.get_response_time_percentile(0.95) > MAX_P95_MS
    ):
        environment.process_exit_code = 1
