"""The fleet simulator against queueing theory, itself at other scales, and the scaling delay of Ray Serve."""

import random
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from safelight.pipeline.capacity.fleet.control_plane import UnitCosts, control_plane, largest_fleet
from safelight.pipeline.capacity.fleet.fleet import Fleet, RequestClass, mean_denoise_seconds
from safelight.pipeline.capacity.fleet.gpu_fleet import gpu_fleet
from safelight.pipeline.capacity.fleet.scaler import Scaler
from safelight.pipeline.capacity.fleet.simulator import SimulationResult, Simulator
from safelight.pipeline.capacity.fleet.traffic import DAY, SHAPES, arrivals
from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

PROPORTIONAL = CostCurve((1.0,), (0.1,))  # ten ticks of an image take a second, a batch as long as its images
REQUESTS = RequestClass(rows=(2,) * 10, work=(1.0,) * 10, tokens=4096, other_stage_seconds=0.25)
FLEET = Fleet(
    gpus=1,
    curve=PROPORTIONAL,
    limits=Limits(2, 1 << 20),
    request_classes=(REQUESTS,),
    downscale_delay=1e9,
    stride=10,
)


def run(fleet: Fleet, rate: float, seconds: float, shape: str = "steady", **options: Any) -> SimulationResult:
    return Simulator(fleet, rate, shape, seconds, **options).run()


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8])
def test_one_device_is_an_m_d_1_queue(rate: float) -> None:
    result = run(FLEET, rate, 60_000.0)
    queue = MDcQueue(rate, 1.0)
    mean = sum(result.latencies) / len(result.latencies)
    assert mean == pytest.approx(1.25 + queue.mean_wait, rel=0.04)
    assert result.percentile(0.95) == pytest.approx(1.25 + queue.wait_quantile(0.95), rel=0.06)
    assert result.images == pytest.approx(rate * 60_000, rel=0.02)
    assert result.busy_seconds == pytest.approx(result.images, rel=0.01)


def test_cheaper_batches_raise_throughput() -> None:
    """A tick of four rows costs hardly more than one of two: two images at a time keep up with the load."""
    curve = CostCurve((1.0, 2.0), (0.1, 0.11))
    fleet = replace(FLEET, curve=curve, limits=Limits(4, 1 << 20), stride=1)
    assert run(fleet, 1.6, 1000.0).percentile(0.5) < 6.0
    one_by_one = run(FLEET, 1.6, 1000.0)
    assert one_by_one.percentile(0.5) > 100.0 and one_by_one.max_waiting > 500


def test_every_image_is_accounted_for() -> None:
    fleet = replace(
        FLEET,
        gpus=20,
        min_gpus=5,
        node_mtbf_seconds=500.0,
        startup_seconds=30.0,
        max_in_flight=60,
        deadline=20.0,
        downscale_delay=60.0,
    )
    simulator = Simulator(fleet, 15.0, "spike", 4000.0)
    result = simulator.run()
    num_arrivals = len(list(arrivals(15.0, "spike", 4000.0, random.Random(1))))
    finished = len(result.latencies) + result.expired
    assert num_arrivals == finished + result.refused + result.lost + simulator._in_flight
    assert result.resent > 20 and result.refused > 0
    assert max(result.latencies) <= 20.0
    assert result.max_replicas == 20


def test_a_replica_is_paid_for_from_its_start_to_its_end() -> None:
    """A node lives for 1000 s. A decision every 50 s starts its successor, which takes 275 s."""
    fleet = replace(
        FLEET,
        node_mtbf_seconds=1000.0,
        startup_seconds=275.0,
        upscale_delay=0.0,
        scaling_interval_seconds=50.0,
    )
    result = run(fleet, 0.001, 1_000_000.0)
    assert result.gpu_seconds == pytest.approx(1_000_000 * 1000 / 1300, rel=0.05)


def test_some_replicas_stand_for_the_fleet() -> None:
    fleet = replace(FLEET, gpus=200, min_gpus=200)
    whole, part = run(fleet, 150.0, 600.0), run(fleet, 150.0, 2400.0, followed_replicas=50)
    assert part.weight == 4.0
    assert part.images / 4 == pytest.approx(whole.images, rel=0.02)
    assert part.percentile(0.95) == pytest.approx(whole.percentile(0.95), rel=0.1)


def test_replicas_follow_the_rate_over_the_day() -> None:
    fleet = replace(FLEET, gpus=12, downscale_delay=300.0, startup_seconds=60.0, scaling_interval_seconds=5.0)
    result = run(fleet, 3.0, DAY, shape="diurnal")
    assert pytest.approx(result.images, rel=0.01) == 3.0 * DAY
    assert result.gpu_seconds < 0.75 * 12 * DAY and result.max_replicas >= 7
    assert result.percentile(0.95) < 10.0


def test_scaling_delay_is_that_of_ray_serve() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.autoscaling_policy import _apply_delay_logic
    rng = random.Random(3)
    for min_replicas in (0, 1):
        scaler = Scaler(min_replicas, 9, 5.0, 3.0, 7.0)
        config: Any = SimpleNamespace(
            upscale_delay_s=3.0, downscale_delay_s=7.0, downscale_to_zero_delay_s=None
        )
        serve_target, requested = scaler.target, min_replicas
        serve_state: dict[str, Any] = {}
        for second in range(3000):
            if rng.random() < 0.15:
                requested = rng.randint(min_replicas, 9)
            target = scaler._after_delay(float(second), requested)
            serve_target, serve_state = _apply_delay_logic(
                requested, serve_target, config, serve_state, float(second)
            )
            assert target == serve_target, second


@pytest.mark.parametrize("shape", SHAPES)
def test_traffic_has_its_mean_and_its_shape(shape: str) -> None:
    times = list(arrivals(2.0, shape, DAY, random.Random(0)))
    assert times == sorted(times)
    expected = 2.0 * sum(SHAPES[shape](float(t), DAY) for t in range(0, int(DAY), 10)) * 10
    assert len(times) == pytest.approx(expected, rel=0.01)
    midday_rate = sum(DAY * 0.495 < t < DAY * 0.505 for t in times) / (DAY * 0.01)
    assert midday_rate == pytest.approx(
        2.0 * sum(SHAPES[shape](DAY * (0.495 + 0.0001 * k), DAY) for k in range(100)) / 100, rel=0.1
    )


def test_the_load_of_each_component() -> None:
    """A hundred images a second on 200 denoisers and 50 other replicas, a megabyte each."""
    components = control_plane(100.0, 200.0, 50.0, 1e6)
    used = {name: component.used for name, component in components.items()}
    assert used == {
        "gateways": pytest.approx(100 * 0.018 / 0.8),
        "ledger": pytest.approx(250 * 0.002 + 300 * 0.000007),
        "controller": pytest.approx(250 * 0.0023),
        "object_store": pytest.approx(100 * 1e6 / 50),
    }
    assert components["controller"].utilisation == pytest.approx(250 * 0.0023 / 0.8)


def test_largest_fleet_is_where_a_component_saturates() -> None:
    saturation = largest_fleet(0.3, 0.2, 1e6)
    for component, denoisers in saturation.items():
        if denoisers < 9e6:
            components = control_plane(0.3 * denoisers, denoisers, 0.2 * denoisers, 1e6)
            assert components[component].utilisation == pytest.approx(1.0, rel=1e-3)
    cheaper_reports = largest_fleet(0.3, 0.2, 1e6, UnitCosts(ledger_report=0.0002))
    assert cheaper_reports["ledger"] > 5 * saturation["ledger"]


def test_mean_denoise_seconds_weighs_request_classes_by_share() -> None:
    twice_as_long = replace(REQUESTS, work=(1.0,) * 20, rows=(2,) * 20, share=3.0)
    assert mean_denoise_seconds([REQUESTS, twice_as_long], PROPORTIONAL) == pytest.approx((1.0 + 3 * 2.0) / 4)


def test_images_go_to_the_less_busy_of_two_replicas() -> None:
    """An image takes a replica one second: four at once take two, two seconds."""
    result = run(replace(FLEET, gpus=2, min_gpus=2), 1.0, 60.0, recorded=[(0.0, 0)] * 4)
    assert result.last_done == pytest.approx(2.0)


def test_the_target_is_within_its_bounds_whatever_the_load() -> None:
    scaler = Scaler(3, 9, target_seconds=5.0, upscale_delay=0.0, downscale_delay=0.0)
    assert [scaler.decide(float(now), work, 0.0) for now, work in enumerate((0.0, 1e4, 0.0))] == [3, 9, 3]


def test_a_batch_shares_the_fixed_part_of_its_tick() -> None:
    cost = ImageCost(0.0, 0.0, (1e12,) * 20, 0.0, rows=2, tokens=64)
    fleet = gpu_fleet(
        2, cost, 1e14, max_rows=32, min_gpus=1, target_seconds=5.0,
        startup_seconds=60.0, node_mtbf_seconds=0.0, scaling_interval_seconds=10.0,
    )  # fmt: skip
    assert fleet.curve.seconds_for(1e12) == pytest.approx(0.01)
    assert fleet.curve.seconds_for(16e12) == pytest.approx(0.16 * 0.915625)  # 1 / 1.09 of one by one
