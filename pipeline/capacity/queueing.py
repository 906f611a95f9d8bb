"""The exact waiting time in a queue with random arrivals, constant service time and c servers (M/D/c).

Number of customers in the system: Crommelin 1932, "Delay probability formulae when the holding times are
constant", Post Office Electrical Engineers' Journal 25, 41-50. Distribution of the wait: Franx 2001, "A
simple solution for the M/D/c waiting time distribution", Operations Research Letters 29, 221-229. Franx's sum
has positive terms only; the sums of Erlang and Crommelin alternate in sign and lose all digits to
cancellation when the queue is long. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

# The linear system covers STATES + STATES_PER_SERVER * c numbers of customers; beyond them the tail is
# geometric.
STATES = 60
STATES_PER_SERVER = 6
MAX_SHARE = 0.9999
MAX_UTILISATION = 1.0 - 1e-6  # from here on the queue is taken to grow without bound


@dataclass(frozen=True)
class MDcQueue:
    """A first-come, first-served queue with Poisson arrivals and constant service time.

    Raises `ValueError` unless all three numbers are positive, and `rate` and `service` finite.

    Attributes:
        rate: customers a second.
        service: seconds that a server spends on one customer.
        servers: c, the number of servers.
    """

    rate: float
    service: float
    servers: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.rate < math.inf and 0.0 < self.service < math.inf and self.servers >= 1):
            raise ValueError(
                "a queue needs a positive rate, time and number of servers, got "
                f"{self.rate}, {self.service}, {self.servers}"
            )

    @property
    def utilisation(self) -> float:
        """The share of time in which a server is busy; at 1 the queue grows without bound."""
        return self.rate * self.service / self.servers

    @property
    def mean_wait(self) -> float:
        """Mean seconds before service, by Little's law; infinite if the queue grows without bound."""
        if self.utilisation >= MAX_UTILISATION:
            return math.inf
        stationary = self._stationary
        waiting, ratio = stationary.pmf[self.servers :], stationary.tail_ratio
        solved = float(np.dot(np.arange(len(waiting)), waiting))
        tail = float(waiting[-1]) * ((len(waiting) - 1) * ratio / (1.0 - ratio) + ratio / (1.0 - ratio) ** 2)
        return (solved + tail) / self.rate

    def wait_cdf(self, seconds: float) -> float:
        """The probability that a customer waits at most `seconds` before service (Franx 2001)."""
        if seconds < 0.0 or self.utilisation >= MAX_UTILISATION:
            return 0.0
        services = math.floor(seconds / self.service) + 1
        # Mean number of arrivals in the time that is missing from a whole number of services.
        mean_arrivals = self.rate * (services * self.service - seconds)
        term, total = math.exp(-mean_arrivals), 0.0
        for number in range(services * self.servers):
            total += term * self._stationary.queue_cdf(services * self.servers - number - 1)
            term *= mean_arrivals / (number + 1)
            if number > mean_arrivals and term < 1e-18:
                break
        return min(total, 1.0)

    def wait_quantile(self, share: float) -> float:
        """The wait in seconds that `share` of the customers do not exceed.

        Infinite if the queue grows without bound. Raises `ValueError` unless 0 < share <= 0.9999, since
        rounding errors dominate closer to 1.
        """
        if not 0.0 < share <= MAX_SHARE:
            raise ValueError(f"a share of the customers is more than 0 and at most {MAX_SHARE}, got {share}")
        if self.utilisation >= MAX_UTILISATION:
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
    def _stationary(self) -> StationaryDistribution:
        return _solve_stationary(self.utilisation, self.servers)


@dataclass(frozen=True, slots=True, eq=False)
class StationaryDistribution:
    """The number of customers in the system at a random moment, waiting and in service.

    Attributes:
        servers: c.
        pmf: (n,) probabilities of 0, 1, ..., n - 1 customers.
        cdf: (n,) cumulative sums of `pmf`.
        tail_ratio: P(k + 1 customers) / P(k customers) for k >= n - 1.
    """

    servers: int
    pmf: np.ndarray
    cdf: np.ndarray
    tail_ratio: float

    def queue_cdf(self, waiting: int) -> float:
        """The probability that at most `waiting` customers (0 or more) wait."""
        customers = self.servers + waiting
        if customers < len(self.cdf):
            return float(self.cdf[customers])
        tail = float(self.pmf[-1]) * self.tail_ratio / (1.0 - self.tail_ratio)
        return 1.0 - tail * self.tail_ratio ** (customers - len(self.cdf) + 1)


@lru_cache(maxsize=256)
def _solve_stationary(utilisation: float, servers: int) -> StationaryDistribution:
    """The stationary distribution by Crommelin's argument.

    After one service time every customer that was in service has left, and those who arrived meanwhile are
    present.
    """
    mean_arrivals, size = utilisation * servers, STATES + STATES_PER_SERVER * servers
    ratio = _tail_ratio(mean_arrivals, servers)
    arrival_pmf = np.array(
        [
            math.exp(k * math.log(mean_arrivals) - mean_arrivals - math.lgamma(k + 1))
            for k in range(size + servers)
        ]
    )
    transition = np.zeros((size, size))  # column i: the distribution one service time after i customers
    for i in range(servers + size - 1):
        remaining = max(i - servers, 0)
        # States beyond the last one are a geometric multiple of it.
        weight = 1.0 if i < size else ratio ** (i - size + 1)
        transition[remaining:, min(i, size - 1)] += weight * arrival_pmf[: size - remaining]
    system = transition - np.eye(size)
    # The balance equations are linearly dependent: the last one becomes "probabilities sum to 1".
    system[-1] = 1.0
    system[-1, -1] = 1.0 / (1.0 - ratio)
    right_side = np.zeros(size)
    right_side[-1] = 1.0
    pmf = np.linalg.solve(system, right_side).clip(0.0)
    return StationaryDistribution(servers, pmf, np.cumsum(pmf), ratio)


def _tail_ratio(mean_arrivals: float, servers: int) -> float:
    """The ratio of the geometric tail: 1/z for the root z > 1 of z^c = e^(mean_arrivals (z - 1))."""
    low = high = servers / mean_arrivals  # where the logarithms of the two sides differ most
    while servers * math.log(high) > mean_arrivals * (high - 1.0):
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        is_below_root = servers * math.log(middle) > mean_arrivals * (middle - 1.0)
        low, high = (middle, high) if is_below_root else (low, middle)
    return 1.0 / high
