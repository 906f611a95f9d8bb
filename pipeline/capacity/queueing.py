"""How long those wait who come at random to servers that take the same time for each: the queue M/D/c, exactly.

How many are there: Crommelin 1932, "Delay probability formulae when the holding times are constant", Post Office Electrical
Engineers' Journal 25, 41-50. How long they wait: Franx 2001, "A simple solution for the M/D/c waiting time distribution", Operations
Research Letters 29, 221-229, a sum of positive terms; Erlang's and Crommelin's own sums alternate, and cancel to nothing in floating
point where the queue is long. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

STATES = 60  # numbers of customers that are solved for, and SPREAD more for each server; beyond them the tail is geometric
SPREAD = 6
MOST_SHARE = 0.9999
FULL = 1.0 - 1e-6  # of a server's time: from here on a queue is taken to grow for ever


@dataclass(frozen=True)
class MDcQueue:
    """Customers come at random, `rate` a second; each of `servers` takes `service` seconds for one, in the order in which they come.

    Raises `ValueError` unless all are positive, and finite.
    """

    rate: float
    service: float
    servers: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.rate < math.inf and 0.0 < self.service < math.inf and self.servers >= 1):
            raise ValueError(
                f"a queue needs a positive rate, time and number of servers, got {self.rate}, {self.service}, {self.servers}"
            )

    @property
    def utilisation(self) -> float:
        """The share of the time in which a server is busy; at 1 the queue grows for ever."""
        return self.rate * self.service / self.servers

    @property
    def mean_wait(self) -> float:
        """Seconds before being served, by Little's law; infinite if the queue grows for ever."""
        if self.utilisation >= FULL:
            return math.inf
        here = self._here
        waiting, ratio = here.exactly[self.servers :], here.ratio
        solved = float(np.dot(np.arange(len(waiting)), waiting))
        beyond = float(waiting[-1]) * (
            (len(waiting) - 1) * ratio / (1.0 - ratio) + ratio / (1.0 - ratio) ** 2
        )
        return (solved + beyond) / self.rate

    def wait_cdf(self, seconds: float) -> float:
        """The probability that a customer waits `seconds` or less before being served."""
        if seconds < 0.0 or self.utilisation >= FULL:
            return 0.0
        services = math.floor(seconds / self.service) + 1
        coming = self.rate * (
            services * self.service - seconds
        )  # customers on average until the next whole service
        term, total = math.exp(-coming), 0.0
        for number in range(services * self.servers):
            total += term * self._here.fewer_wait(services * self.servers - number)
            term *= coming / (number + 1)
            if number > coming and term < 1e-18:
                break
        return min(total, 1.0)

    def wait_quantile(self, share: float) -> float:
        """The least wait that `share` of the customers do not exceed, in seconds; infinite if the queue grows for ever.

        Raises `ValueError` for a share that is not in (0, 0.9999]: further out, rounding decides.
        """
        if not 0.0 < share <= MOST_SHARE:
            raise ValueError(f"a share of the customers is more than 0 and at most {MOST_SHARE}, got {share}")
        if self.utilisation >= FULL:
            return math.inf
        if self.wait_cdf(0.0) >= share:
            return 0.0
        high = self.service
        while self.wait_cdf(high) < share:
            high *= 2.0
        low = 0.0
        while high - low > 1e-7 * high:
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.wait_cdf(middle) >= share else (middle, high)
        return high

    @cached_property
    def _here(self) -> StationaryDistribution:
        return _customers(self.utilisation, self.servers)


@dataclass(frozen=True, slots=True, eq=False)
class StationaryDistribution:
    """How many customers are there: the probabilities of 0, 1, 2, ..., and from the last of them on falling by `ratio`."""

    servers: int
    exactly: np.ndarray
    at_most: np.ndarray
    ratio: float

    def fewer_wait(self, waiting: int) -> float:
        """The probability that fewer than so many wait (1 or more)."""
        there = self.servers + waiting - 1
        if there < len(self.at_most):
            return float(self.at_most[there])
        tail = float(self.exactly[-1]) * self.ratio / (1.0 - self.ratio)
        return 1.0 - tail * self.ratio ** (there - len(self.at_most) + 1)


@lru_cache(maxsize=256)
def _customers(utilisation: float, servers: int) -> StationaryDistribution:
    """The stationary distribution: after one service time all who were served are gone, and those are there who came meanwhile."""
    coming, size = utilisation * servers, STATES + SPREAD * servers
    ratio = _tail_ratio(coming, servers)
    arrive = np.array(
        [math.exp(k * math.log(coming) - coming - math.lgamma(k + 1)) for k in range(size + servers)]
    )
    reached = np.zeros((size, size))  # column i: what i customers lead to
    for i in range(servers + size - 1):
        left = max(i - servers, 0)
        weight = (
            1.0 if i < size else ratio ** (i - size + 1)
        )  # of the last that is solved for, on whom the tail depends
        reached[left:, min(i, size - 1)] += weight * arrive[: size - left]
    system = reached - np.eye(size)
    system[-1] = 1.0  # one equation says nothing new, this one does
    system[-1, -1] = 1.0 / (1.0 - ratio)
    wanted = np.zeros(size)
    wanted[-1] = 1.0
    exactly = np.linalg.solve(system, wanted).clip(0.0)
    return StationaryDistribution(servers, exactly, np.cumsum(exactly), ratio)


def _tail_ratio(coming: float, servers: int) -> float:
    """How much rarer one more customer is where there are many: 1/z of the root z > 1 of z^c = e^(coming (z - 1))."""
    low = high = servers / coming  # where the difference of the two sides' logarithms is greatest
    while servers * math.log(high) > coming * (high - 1.0):
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if servers * math.log(middle) > coming * (middle - 1.0) else (low, middle)
    return 1.0 / high
