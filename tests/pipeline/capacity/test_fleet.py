"""The simulated fleet against queueing theory, against itself at other scales, and against Ray Serve's own delay rule."""

import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest

from safelight.pipeline.capacity.fleet.control_plane import UnitCosts, control_plane, largest_fleet
from safelight.pipeline.capacity.fleet.scaler import Scaler
from safelight.pipeline.capacity.fleet.simulator import Fleet, RequestClass, Simulator, mean_load
from safelight.pipeline.capacity.fleet.traffic import DAY, SHAPES, arrivals
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

ONE_BY_ONE = CostCurve((1.0,), (0.1,))  # a second for ten ticks, in proportion
KIND = RequestClass(rows=(2,) * 10, work=(1.0,) * 10, tokens=4096, around=0.25)
FLEET = Fleet(
    gpus=1, curve=ONE_BY_ONE, limits=Limits(2, 1 << 20), kinds=(KIND,), downscale_delay=1e9, stride=10
)


def run(fleet: Fleet, rate: float, seconds: float, shape: str = "steady", **options: float):
    return Simulator(fleet, rate, shape, seconds, **options).run()


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8])
def test_one_device_is_an_m_d_1_queue(rate: float) -> None:
    found = run(FLEET, rate, 60_000.0)
    queue = MDcQueue(rate, 1.0)
    mean = sum(found.latencies) / len(found.latencies)
    assert mean == pytest.approx(1.25 + queue.mean_wait, rel=0.04)
    assert found.percentile(0.95) == pytest.approx(1.25 + queue.wait_quantile(0.95), rel=0.06)
    assert found.images == pytest.approx(rate * 60_000, rel=0.02)
    assert found.busy_seconds == pytest.approx(found.images, rel=0.01)


def test_batches_are_shared_as_the_engine_shares_them() -> None:
    """A tick of four rows costs hardly more than one of two: twice the images at once, while there are two."""
    curve = CostCurve((1.0, 2.0), (0.1, 0.11))
    fleet = replace(FLEET, curve=curve, limits=Limits(4, 1 << 20), stride=1)
    assert run(fleet, 1.6, 3000.0).percentile(0.5) < 6.0
    alone = run(FLEET, 1.6, 3000.0)
    assert alone.percentile(0.5) > 100.0 and alone.most_waiting > 500


def test_every_image_is_somewhere() -> None:
    fleet = replace(
        FLEET,
        gpus=20,
        least=5,
        mean_life=500.0,
        start=30.0,
        max_in_flight=60,
        deadline=20.0,
        downscale_delay=60.0,
    )
    simulator = Simulator(fleet, 15.0, "spike", 4000.0)
    found = simulator.run()
    came = len(list(arrivals(15.0, "spike", 4000.0, random.Random(1))))
    assert came == len(found.latencies) + found.refused + found.expired + found.lost + simulator._in_flight
    assert found.resent > 20 and found.refused > 0
    assert max(found.latencies) <= 20.0
    assert found.most_replicas == 20


def test_a_sample_of_replicas_stands_for_the_fleet() -> None:
    fleet = replace(FLEET, gpus=200, least=200)
    whole, part = run(fleet, 150.0, 600.0), run(fleet, 150.0, 2400.0, sample=50)
    assert part.weight == 4.0
    assert part.images / 4 == pytest.approx(whole.images, rel=0.02)
    assert part.percentile(0.95) == pytest.approx(whole.percentile(0.95), rel=0.1)


def test_replicas_follow_the_day() -> None:
    fleet = replace(FLEET, gpus=40, downscale_delay=300.0, start=60.0, control=5.0)
    found = run(fleet, 10.0, DAY, shape="diurnal")
    assert pytest.approx(found.images, rel=0.01) == 10.0 * DAY
    assert found.gpu_seconds < 0.75 * 40 * DAY and found.most_replicas >= 22
    assert found.percentile(0.95) < 10.0


def test_the_delay_before_a_change_is_ray_serves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.autoscaling_policy import _apply_delay_logic
    rng = random.Random(3)
    for least in (0, 1):
        scaler = Scaler(least, 9, 5.0, 3.0, 7.0)
        config = SimpleNamespace(upscale_delay_s=3.0, downscale_delay_s=7.0, downscale_to_zero_delay_s=None)
        theirs, state, wanted = scaler.target, {}, least
        for second in range(3000):
            if rng.random() < 0.15:
                wanted = rng.randint(least, 9)
            ours = scaler._after_delay(float(second), wanted)
            theirs, state = _apply_delay_logic(wanted, theirs, config, state, float(second))
            assert ours == theirs, second


@pytest.mark.parametrize("shape", SHAPES)
def test_traffic_has_its_mean_and_its_shape(shape: str) -> None:
    times = list(arrivals(2.0, shape, DAY, random.Random(0)))
    assert times == sorted(times)
    expected = 2.0 * sum(SHAPES[shape](float(t), DAY) for t in range(0, int(DAY), 10)) * 10
    assert len(times) == pytest.approx(expected, rel=0.01)
    noon = sum(DAY * 0.495 < t < DAY * 0.505 for t in times) / (DAY * 0.01)
    assert noon == pytest.approx(
        2.0 * sum(SHAPES[shape](DAY * (0.495 + 0.0001 * k), DAY) for k in range(100)) / 100, rel=0.1
    )


def test_the_first_part_to_be_full_is_found_where_its_share_is_one() -> None:
    full = largest_fleet(0.3, 0.2, 1e6)
    for name, denoisers in full.items():
        if denoisers < 9e6:
            assert control_plane(0.3 * denoisers, denoisers, 0.2 * denoisers, 1e6)[
                name
            ].share == pytest.approx(1.0, rel=1e-3)
    assert largest_fleet(0.3, 0.2, 1e6, UnitCosts(ledger_statement=0.0002))["ledger"] > 5 * full["ledger"]


def test_mean_load_weighs_kinds_by_their_share() -> None:
    other = replace(KIND, work=(1.0,) * 20, rows=(2,) * 20, share=3.0)
    assert mean_load([KIND, other], ONE_BY_ONE) == pytest.approx((1.0 + 3 * 2.0) / 4)
