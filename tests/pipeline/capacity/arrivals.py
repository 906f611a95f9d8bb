"""Arrival times for the capacity tests, and quantiles of what is measured on them."""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate


def poisson_arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    """`count` arrival times in seconds, at random at `rate` a second."""
    rng = random.Random(seed)
    return accumulate(rng.expovariate(rate) for _ in range(count))


def quantile(share: float, ordered: Sequence[float]) -> float:
    return ordered[int(share * len(ordered))]
