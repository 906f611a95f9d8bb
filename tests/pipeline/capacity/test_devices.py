"""Waits on a device against a simulation of the engine's own batching."""

import math
from dataclasses import astuple, replace
from functools import partial

import pytest

from safelight.pipeline.capacity.devices import MeasuredDevice, measured_device, paired_wait_seconds
from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload
from tests.pipeline.capacity.arrivals import poisson_arrivals, quantile

RATE = 1000 / 3600  # a thousand an hour
TICK = 0.1
PROPORTIONAL = CostCurve(
    (2.0, 64.0), (TICK, 32 * TICK)
)  # by rows: a batch costs what its rows cost one by one
CHEAPER_BATCHES = CostCurve((2.0, 16.0), (TICK, 2 * TICK))  # 16 rows in the time of 4


def engine_latencies(curve: CostCurve, max_rows: int, rate: float, count: int = 6000) -> list[float]:
    """Sorted latencies of images of 20 guided steps under the engine's own batching."""
    samples = [
        SimulatedSample(make_workload([2] * 20, [2.0] * 20, 64, curve, arrival))
        for arrival in poisson_arrivals(rate, count, seed=0)
    ]
    select = partial(select_next_batch, limits=Limits(max_rows, 10**6), curve=curve)
    return sorted(sample.latency for sample in simulate(samples, select, curve))


def test_the_engine_with_two_rows_a_tick_is_an_m_d_1_queue() -> None:
    """With two rows a tick images run one by one; with more they share the device, and most finish later."""
    queue = MDcQueue(RATE, 20 * TICK)
    one_by_one = engine_latencies(PROPORTIONAL, 2, RATE)
    batched = engine_latencies(PROPORTIONAL, 16, RATE)
    assert sum(one_by_one) / len(one_by_one) == pytest.approx(2.0 + queue.mean_wait, rel=0.05)
    assert quantile(0.95, one_by_one) == pytest.approx(2.0 + queue.wait_quantile(0.95), rel=0.05)
    assert quantile(0.95, batched) > 1.3 * quantile(0.95, one_by_one)


def test_a_measured_device_gains_by_batching() -> None:
    cost = ImageCost(10.0, 0.0, (2.0,) * 20, 10.0, rows=2, tokens=64)
    device = MeasuredDevice(CHEAPER_BATCHES, text_seconds=0.01, decode_seconds=0.05, limits=Limits(16, 10**6))
    assert astuple(device.stage_seconds(cost)) == pytest.approx((0.02, 2.0, 0.05))
    # 8 images in the time of 2
    assert astuple(device.busy_seconds(cost)) == pytest.approx((0.02, 2.0 * 2 / 8, 0.05))
    rate = 1.0  # twice the rate that is possible without batching
    assert MDcQueue(rate, device.stage_seconds(cost).total).wait_quantile(0.95) == math.inf
    engine_wait = quantile(0.95, engine_latencies(CHEAPER_BATCHES, 16, rate)) - 2.0
    denoise_wait = device.denoise_wait_seconds(cost, rate, 0.95, 1)
    assert denoise_wait == pytest.approx(engine_wait, rel=0.15)
    assert denoise_wait < device.wait_seconds(cost, rate, 0.95) < math.inf
    assert device.wait_seconds(cost, 2.0, 0.95) == math.inf
    assert device.denoise_wait_seconds(cost, 4.1, 0.95, 2) == math.inf


COST = ImageCost(10.0, 0.0, (2.0,) * 20, 10.0, rows=2, tokens=64)


@pytest.mark.parametrize("limits", [Limits(4, 10**6), Limits(16, 4 * 64 + 3)], ids=["rows", "tokens"])
def test_a_full_batch_holds_what_both_limits_allow(limits: Limits) -> None:
    """Here two images: a tick of four rows takes 8/7 of one of two."""
    device = MeasuredDevice(CHEAPER_BATCHES, text_seconds=0.01, decode_seconds=0.05, limits=limits)
    assert device.busy_seconds(COST).denoise == pytest.approx(2.0 * 8 / 7 / 2)


def test_stages_that_take_turns_add_up_and_others_wait_for_the_slowest() -> None:
    device = MeasuredDevice(CHEAPER_BATCHES, text_seconds=0.01, decode_seconds=0.05, limits=Limits(16, 10**6))
    assert device.marginal_seconds(COST) == pytest.approx(0.02 + 0.5 + 0.05)
    at_once = replace(device, stages_take_turns=False)
    assert at_once.marginal_seconds(COST) == pytest.approx(0.5)
    assert replace(at_once, decode_seconds=0.7).marginal_seconds(COST) == 0.7
    assert at_once.wait_seconds(COST, 1.0, 0.95) == device.denoise_wait_seconds(COST, 1.0, 0.95, 1)


def test_replicas_share_the_requests() -> None:
    device = MeasuredDevice(CHEAPER_BATCHES, text_seconds=0.01, decode_seconds=0.05, limits=Limits(16, 10**6))
    alone = device.denoise_wait_seconds(COST, 1.0, 0.95, 1)
    assert device.denoise_wait_seconds(COST, 3.0, 0.95, 3) == alone > 0.0
    pair = MDcQueue(2.0, 0.4, 2).wait_quantile(0.95)
    assert paired_wait_seconds(2.0, 0.4, 0.95, 2) == paired_wait_seconds(6.0, 0.4, 0.95, 6) == pair > 0.0
    assert paired_wait_seconds(2.0, 0.4, 0.95, 1) == MDcQueue(2.0, 0.4, 1).wait_quantile(0.95)
    assert paired_wait_seconds(2.0, 0.0, 0.95, 1) == 0.0


def test_the_stages_of_a_service_work_at_once() -> None:
    """They are processes of their own: the slowest decides the throughput."""
    profile = model_profile(find_model("tiny"))
    curves = {stage: CostCurve((1e6,), (seconds,)) for stage, seconds in (("encode", 1.0), ("decode", 2.0))}
    device = measured_device({**curves, "denoise": CHEAPER_BATCHES}, profile, (64, 64), 16, 0)
    assert device.marginal_seconds(COST) == device.busy_seconds(COST).decode > 0.0
    assert device.busy_seconds(COST).total > device.marginal_seconds(COST)
