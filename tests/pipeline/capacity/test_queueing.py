"""M/D/c queues against simulated queues and closed formulas."""

import heapq
import math

import pytest

from safelight.pipeline.capacity.queueing import MDcQueue
from tests.bench.simulations import batched_latency
from tests.pipeline.capacity.arrivals import poisson_arrivals, quantile

RATE = 1000 / 3600  # a thousand an hour


def simulated_waits(rate: float, service: float, servers: int, count: int = 200_000) -> list[float]:
    """The sorted waits of `count` customers, each served by the server that is idle first."""
    idle_at, waits = [0.0] * servers, []
    for arrival in poisson_arrivals(rate, count, seed=3):
        start = max(arrival, heapq.heappop(idle_at))
        heapq.heappush(idle_at, start + service)
        waits.append(start - arrival)
    return sorted(waits)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.3), (1, 0.7), (2, 0.6), (3, 0.8), (8, 0.9)])
def test_waits_are_those_of_a_simulated_queue(servers: int, utilisation: float) -> None:
    queue = MDcQueue(utilisation * servers / 2.0, 2.0, servers)
    waits = simulated_waits(queue.rate, queue.service, servers)
    assert queue.utilisation == pytest.approx(utilisation)
    assert queue.mean_wait == pytest.approx(sum(waits) / len(waits), rel=0.05)
    for share in (0.5, 0.9, 0.95, 0.99):
        assert queue.wait_quantile(share) == pytest.approx(quantile(share, waits), rel=0.06, abs=0.02)
    for seconds in (0.0, 0.5, 2.0, 5.0):
        assert queue.wait_cdf(seconds) == pytest.approx(
            sum(wait <= seconds for wait in waits) / len(waits), abs=0.01
        )


@pytest.mark.parametrize(
    ("service", "mean", "p95", "p99"),
    [
        (3.5, 65.0, None, None),
        (2.5, 5.3, 12.6, None),
        (2.0, None, 6.9, None),
        (1.7, None, 5.0, None),
        (1.5, None, 3.9, 5.5),
    ],
)
def test_latency_of_one_server_at_a_thousand_an_hour(
    service: float, mean: float | None, p95: float | None, p99: float | None
) -> None:
    queue = MDcQueue(RATE, service)
    for expected, wait in (
        (mean, queue.mean_wait),
        (p95, queue.wait_quantile(0.95)),
        (p99, queue.wait_quantile(0.99)),
    ):
        assert expected is None or service + wait == pytest.approx(expected, rel=0.025)


@pytest.mark.parametrize("utilisation", [1e-4, 0.2, 0.5, 0.9, 0.97, 0.995, 0.9999])
def test_one_server_by_closed_formulas(utilisation: float) -> None:
    """The mean by Pollaczek and Khinchine; the first terms of Erlang's sum, where nothing cancels."""
    queue = MDcQueue(utilisation, 1.0)
    assert queue.mean_wait == pytest.approx(utilisation / (2 * (1 - utilisation)), rel=1e-6)
    for seconds in (0.0, 0.25, 0.999):
        assert queue.wait_cdf(seconds) == pytest.approx(
            (1 - utilisation) * math.exp(utilisation * seconds), rel=1e-6
        )
    if utilisation > 0.1:
        share = queue.wait_cdf(1.7)  # Erlang's sum has two terms here
        two_terms = math.exp(1.7 * utilisation) - 0.7 * utilisation * math.exp(0.7 * utilisation)
        assert share == pytest.approx((1 - utilisation) * two_terms, rel=1e-6)
        assert queue.wait_quantile(min(share, 0.9999)) == pytest.approx(1.7, rel=1e-4) or share > 0.9999


def test_an_overloaded_queue_waits_without_bound() -> None:
    for queue in (MDcQueue(1.0, 1.0), MDcQueue(2.0, 3.0, 5)):
        assert queue.mean_wait == queue.wait_quantile(0.5) == math.inf
        assert queue.wait_cdf(1e9) == 0.0
    assert MDcQueue(1.0, 0.5).wait_cdf(-1.0) == 0.0


@pytest.mark.parametrize(
    ("rate", "service", "servers"),
    [(0.0, 1.0, 1), (1.0, 0.0, 1), (math.inf, 1.0, 1), (1.0, math.nan, 1), (1.0, 1.0, 0)],
)
def test_an_impossible_queue_is_refused(rate: float, service: float, servers: int) -> None:
    with pytest.raises(ValueError, match="positive rate"):
        MDcQueue(rate, service, servers)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.99999, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"0\.9999"):
        MDcQueue(0.5, 1.0).wait_quantile(share)


def test_one_image_at_a_time_is_an_m_d_1_queue_in_the_published_simulation() -> None:
    mean, p95 = batched_latency(1.7, max_rows=2)
    queue = MDcQueue(1000 / 3600, 1.7)
    assert mean == pytest.approx(1.7 + queue.mean_wait, rel=0.05)
    assert p95 == pytest.approx(1.7 + queue.wait_quantile(0.95), rel=0.05)
    assert batched_latency(1.7, max_rows=16)[0] > 1.1 * mean
