"""One simulated service: each of its parts costs what it should, and no other does."""

import math
import random
from dataclasses import asdict, replace

import pytest

from docs.figures.capacity import simulator_errors
from docs.figures.data import Run
from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.capacity.service_simulation import (
    ServiceCosts,
    in_turn,
    simulate_service,
    with_ratios_of_mean,
)
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.bench.simulator_error import Comparison, Counters, ratios_between

TICKS = 10
IMAGE = ImageCost(encode=0.0, ticks=(1.0,) * TICKS, decode=0.0, rows=2, tokens=64, once=0.0)
# A tick takes a tenth of a second for any batch of up to eight images.
COSTS = ServiceCosts(CostCurve((1.0, 8.0), (0.1, 0.1)), Limits(16, 16 * 64))


def latencies(costs: ServiceCosts, *arrivals: float) -> list[float]:
    return [answer.latency for answer in simulate_service([(at, IMAGE) for at in arrivals], costs)]


def test_a_lone_image_takes_what_all_parts_take() -> None:
    assert latencies(COSTS, 3.0) == pytest.approx([1.0])
    costs = replace(COSTS, tick_overhead=0.01, gateway=0.2, encode=0.03, decode=0.04, transfer=0.5)
    assert latencies(costs, 3.0) == pytest.approx([1.0 + 10 * 0.01 + 0.2 + 0.03 + 0.04 + 0.5])


def test_images_wait_for_encoder_and_decoder_but_not_for_transfers() -> None:
    """Of four images at once the encoder lets in one after another; a transfer delays none by another."""
    alone = latencies(replace(COSTS, encode=2.0), 0.0)[0]
    assert latencies(replace(COSTS, encode=2.0), 0.0, 0.0, 0.0) == pytest.approx(
        [alone, alone + 2.0, alone + 4.0]
    )
    assert latencies(replace(COSTS, decode=0.5), 0.0, 0.0, 0.0) == pytest.approx([1.5, 2.0, 2.5])
    assert latencies(replace(COSTS, transfer=2.0), 0.0, 0.0, 0.0) == pytest.approx([3.0, 3.0, 3.0])
    assert latencies(replace(COSTS, gateway=0.2), 0.0, 0.0) == pytest.approx([1.3, 1.4], abs=0.11)


def test_answers_are_in_the_order_of_arrival() -> None:
    """A short image overtakes a long one."""
    short = replace(IMAGE, ticks=(1.0,) * 2)
    long_answer, short_answer = simulate_service([(0.0, IMAGE), (0.05, short)], COSTS)
    assert long_answer.done == pytest.approx(1.0) and short_answer.done == pytest.approx(0.3)
    assert short_answer.arrived == 0.05


def test_a_decoder_under_random_load_is_an_m_d_1_queue() -> None:
    rng, now, arrivals = random.Random(0), 0.0, list[float]()
    for _ in range(20_000):
        arrivals.append(now := now + rng.expovariate(0.7))
    waits = [done - at - 1.0 for at, done in zip(arrivals, in_turn(arrivals, 1.0), strict=True)]
    assert sum(waits) / len(waits) == pytest.approx(MDcQueue(0.7, 1.0).mean_wait, rel=0.1)


def test_ticks_deviate_as_measured() -> None:
    """Half of the ticks take half of the curve's seconds and half take 1.5 times: the mean stays."""
    ratios = with_ratios_of_mean([(1.0, 5.0), (3.0, 5.0)], 1.0)
    assert ratios == [(0.5, 5.0), (1.5, 5.0)]
    times = latencies(replace(COSTS, tick_ratios=ratios), *(2.0 * number for number in range(300)))
    assert sum(times) / len(times) == pytest.approx(1.0, rel=0.03)
    assert min(times) < 0.8 and max(times) > 1.2


def test_ratios_of_ticks_are_read_from_a_histogram() -> None:
    """From cumulative counts at two moments: 3 ticks below 0.5, none up to 1, 4 up to 2 and 1 above."""

    def counters(*counts: float) -> Counters:
        bounds = (0.5, 1.0, 2.0, math.inf)
        return Counters({}, counts[-1], 0.0, 0.0, tuple(zip(bounds, counts, strict=True)))

    ratios = ratios_between(counters(1, 1, 5, 9), counters(4, 4, 12, 17))
    assert ratios == [(pytest.approx(0.45), 3), (1.5, 4), (2.5, 1)]


def test_the_page_shows_errors_and_the_load_beside_them() -> None:
    row = Comparison("in peaks", 80, 9000.0, 9900.0, 1.0, 1.1, 4.0, 3.4, 7.25, 0.4)
    figures = {
        "comparisons": [asdict(row) | {"throughput_error": row.throughput_error, "p95_error": row.p95_error}]
    }
    machine: dict[str, object] = {"instruction_sets": ["AMX"], "accelerator": None, "gemm_gflops": {}}
    record = {"machine": machine, "commit": "abc", "date": "2026-11-30", "command": "c", "figures": figures}
    page = simulator_errors([Run("amx", "simulator", record)])
    assert "| in peaks | 80 | 9,900 / 9,000 | +10% | 3.40 / 4.00 | -15% | 7.2 | 40% |" in page
    assert "| error of the simulated p95 | at most 10 % | 15 % | missed |" in page
