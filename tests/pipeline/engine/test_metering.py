"""What ticks cost and what samples have used, without a network."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from safelight.pipeline.engine.metering import PROBE_INTERVAL, Metering, TickRecord, usage_of
from safelight.pipeline.engine.sample import Charged
from safelight.pipeline.params import DenoiseUsage, Share, StageCost
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.workload import SampleWorkload, make_workload

# Ticks of more than about 3 operations are not worth their length.
CURVE = CostCurve((1.0, 2.0, 4.0), (0.1, 0.15, 0.6))


@dataclass(eq=False)
class MeteredSample(Charged):
    """A sample without an image."""

    workload: SampleWorkload
    setup_flops: int
    step_index: int


def sample(rows: list[int], step_index: int, setup_flops: int = 0, device_seconds: float = 0.0) -> Any:
    """A sample of 10 tokens a row, each row of one operation, before its tick `step_index`."""
    workload = make_workload(rows, [float(row) for row in rows], 10, CURVE, arrived=0.0)
    return MeteredSample(workload, setup_flops, step_index, device_seconds=device_seconds)


def test_a_tick_is_recorded_and_its_seconds_are_shared_by_work() -> None:
    """A guided sample at its first tick, and one that is guided no more at its third."""
    guided, plain = sample([2, 2, 2], 0, device_seconds=1.0), sample([2, 2, 1], 2)
    plain.workload = replace(plain.workload, share=Share("another", 2.0))
    metering = Metering(CURVE)
    metering.start_tick()
    work = metering.work_of([guided, plain])
    metering.charge_tick(work, [guided, plain], set())
    guided.step_index, plain.step_index = 2, 3  # the next tick may have begun
    metering.record_tick(work, 0.3)
    assert (guided.device_seconds, plain.device_seconds) == (pytest.approx(1.2), pytest.approx(0.1))
    assert metering.last_tick is not None
    assert replace(metering.last_tick, expected_seconds=0.0) == TickRecord(3, 30, 0.3, 3)
    assert metering.last_tick.expected_seconds == pytest.approx(CURVE.seconds_for(3.0))
    # also what the first had used before its tick
    shares = metering.shares
    assert shares.start_tag(guided.workload.share) == pytest.approx(1.2)
    assert shares.start_tag(plain.workload.share) == pytest.approx(0.1 / 2)
    metering.record_idle_tick()
    assert metering.last_tick == TickRecord(0, 0, 0.0, 0)


def test_one_tick_in_many_is_a_probe() -> None:
    """It may be of any size, and corrects the curve's shape but not the slowdown."""
    metering = Metering(CURVE)
    for number in range(1, 2 * PROBE_INTERVAL + 1):
        before = metering.curve
        limit = metering.start_tick()
        work = metering.work_of([sample([2, 2], 0)])
        metering.charge_tick(work, work.samples, set())
        metering.record_tick(work, 2 * before.seconds_for(2.0))
        is_probe = number % PROBE_INTERVAL == 0
        assert limit == (before.uncapped() if is_probe else before)
        corrected = before.updated_by_probe if is_probe else before.updated
        assert metering.curve == corrected(2.0, 2 * before.seconds_for(2.0))


def test_usage_is_that_of_the_ticks_done() -> None:
    """Two of four ticks: 2 rows, then 1."""
    usage = usage_of(sample([2, 1, 1, 1], 2, setup_flops=7, device_seconds=0.5), 1.5, True)
    assert usage == DenoiseUsage(2, 2, 3, 30, StageCost(0.5, 7 + 3, 1.5), True)
    assert usage_of(sample([2, 1], 0), 0.0, False) == DenoiseUsage(0, 0, 0, 0, StageCost(0.0, 0), False)
