"""Which replica gets a request: Ray Serve's rule, which the simulators share."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

R = TypeVar("R")


def less_busy_of_two(rng: random.Random, replicas: Sequence[R], load: Callable[[R], int]) -> R:
    """The less busy of two random replicas, the only one if there is one; the first of two alike.

    Args:
        rng: Chooses the two.
        replicas: At least one.
        load: The number of requests that a replica has.
    """
    pair = rng.sample(replicas, min(2, len(replicas)))
    return min(pair, key=load)
