"""Capacity: waits against simulated queues, times against published ones, fleets against their simulation."""

import heapq
import math
import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import pytest

from safelight.pipeline.capacity import predict as capacity
from safelight.pipeline.capacity.image_cost import ImageCost, image_cost
from safelight.pipeline.capacity.predict import (
    GPUS,
    ConstantRateDevice,
    ImageSpec,
    MeasuredDevice,
    ModelProfile,
    StageDurations,
    Targets,
    predict,
    required_replicas,
)
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload

HOURLY = 1000 / 3600
A100, H100 = GPUS["a100"].peak_flops, GPUS["h100"].peak_flops
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "capacity.md"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = spec_from_file_location("capacity_table", DOCUMENTATION.with_name("capacity_table.py"))
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    rng = random.Random(seed)
    return accumulate(rng.expovariate(rate) for _ in range(count))


def simulated_waits(rate: float, service: float, servers: int, count: int = 200_000) -> list[float]:
    """Of every customer, sorted: each goes to the server that is free first."""
    free, waits = [0.0] * servers, []
    for now in arrivals(rate, count, seed=3):
        begun = max(now, heapq.heappop(free))
        heapq.heappush(free, begun + service)
        waits.append(begun - now)
    return sorted(waits)


def at(share: float, ordered: Sequence[float]) -> float:
    return ordered[int(share * len(ordered))]


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.3), (1, 0.7), (2, 0.6), (3, 0.8), (8, 0.9)])
def test_waits_are_those_of_a_simulated_queue(servers: int, utilisation: float) -> None:
    queue = MDcQueue(utilisation * servers / 2.0, 2.0, servers)
    waits = simulated_waits(queue.rate, queue.service, servers)
    assert queue.utilisation == pytest.approx(utilisation)
    assert queue.mean_wait == pytest.approx(sum(waits) / len(waits), rel=0.05)
    for share in (0.5, 0.9, 0.95, 0.99):
        assert queue.wait_quantile(share) == pytest.approx(at(share, waits), rel=0.06, abs=0.02)
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
def test_a_thousand_an_hour_on_one_server(
    service: float, mean: float | None, p95: float | None, p99: float | None
) -> None:
    queue = MDcQueue(HOURLY, service)
    for wanted, wait in (
        (mean, queue.mean_wait),
        (p95, queue.wait_quantile(0.95)),
        (p99, queue.wait_quantile(0.99)),
    ):
        assert wanted is None or service + wait == pytest.approx(wanted, rel=0.025)


@pytest.mark.parametrize("utilisation", [1e-4, 0.2, 0.5, 0.9, 0.97, 0.995, 0.9999])
def test_one_server_by_closed_formulas(utilisation: float) -> None:
    """The mean by Pollaczek and Khinchine; within one service time Erlang's sum has one term, and nothing cancels."""
    queue = MDcQueue(utilisation, 1.0)
    assert queue.mean_wait == pytest.approx(utilisation / (2 * (1 - utilisation)), rel=1e-6)
    for seconds in (0.0, 0.25, 0.999):
        assert queue.wait_cdf(seconds) == pytest.approx(
            (1 - utilisation) * math.exp(utilisation * seconds), rel=1e-6
        )
    if utilisation > 0.1:
        share = queue.wait_cdf(1.7)  # Erlang's second term
        early = math.exp(1.7 * utilisation) - 0.7 * utilisation * math.exp(0.7 * utilisation)
        assert share == pytest.approx((1 - utilisation) * early, rel=1e-6)
        assert queue.wait_quantile(min(share, 0.9999)) == pytest.approx(1.7, rel=1e-4) or share > 0.9999


def test_a_queue_that_grows_for_ever() -> None:
    for queue in (MDcQueue(1.0, 1.0), MDcQueue(2.0, 3.0, 5)):
        assert queue.mean_wait == queue.wait_quantile(0.5) == math.inf
        assert queue.wait_cdf(1e9) == 0.0
    assert MDcQueue(1.0, 0.5).wait_cdf(-1.0) == 0.0


@pytest.mark.parametrize(
    ("rate", "service", "servers"),
    [(0.0, 1.0, 1), (1.0, 0.0, 1), (math.inf, 1.0, 1), (1.0, math.nan, 1), (1.0, 1.0, 0)],
)
def test_no_queue_at_all(rate: float, service: float, servers: int) -> None:
    with pytest.raises(ValueError, match="positive rate"):
        MDcQueue(rate, service, servers)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.99999, math.nan])
def test_a_share_beyond_reach(share: float) -> None:
    with pytest.raises(ValueError, match="0.9999"):
        MDcQueue(0.5, 1.0).wait_quantile(share)


TFLOPS = {  # 1024 x 1024, both rows of guidance, texts and decoding among them
    "pixart-alpha": {20: 273, 50: 664}, "pixart-sigma": {10: 149, 20: 281, 28: 388}, "sdxl": {20: 281, 50: 687},
    "sd3-medium": {20: 372, 28: 514, 50: 906}, "sd3.5-medium": {20: 465, 28: 645}, "sd3.5-large": {20: 1260, 28: 1758},
    "flux.1-dev": {20: 1503, 28: 2098, 50: 3735}, "flux.1-schnell": {4: 291},
}  # fmt: skip


def order(outline: ModelProfile, **changed: object) -> ImageSpec:
    asked = {
        "size": outline.native_size,
        "num_steps": outline.num_steps,
        "guidance_scale": outline.guidance_scale,
        "solver": outline.solver,
    }
    return ImageSpec(**asked | changed)


@pytest.mark.parametrize("name", TFLOPS)
def test_work_of_published_models(name: str) -> None:
    """Against sums of torch's counter over diffusers' own networks, which read each text anew at every step."""
    outline = capacity.published_profile(name)
    for steps, wanted in TFLOPS[name].items():
        work = image_cost(outline, order(outline, num_steps=steps))
        assert work.total / 1e12 == pytest.approx(wanted, rel=0.01)
        assert work.total == work.encode + work.denoise + work.decode


def test_work_follows_the_solver_and_guidance() -> None:
    outline = capacity.published_profile("sd3-medium")
    guided = image_cost(outline, order(outline, num_steps=20))
    heun = image_cost(outline, order(outline, num_steps=20, solver="heun"))
    alone = image_cost(outline, order(outline, num_steps=20, guidance_scale=1.0))
    assert (len(guided.ticks), len(heun.ticks), len(alone.ticks)) == (20, 39, 20)
    assert (guided.rows, alone.rows) == (2, 1)
    assert guided.ticks[0] == 2 * alone.ticks[0]
    assert (guided.encode, guided.decode) == (2 * alone.encode, alone.decode)


def test_a_folder_has_the_work_of_its_configs() -> None:
    """The embedded model, against what its own stages are said to do: see tests/pipeline/flops/test_flops.py for each."""
    model = find_model("emoji-128")
    outline = capacity.model_profile(model)
    work = image_cost(outline, order(outline))
    assert (outline.sizes, outline.scale) == (model.sizes, 8)
    assert work.encode == 2 * 84_568_320
    assert work.decode == 4_981_063_680
    assert work.tokens == 64


@pytest.mark.parametrize("name", capacity.list_published())
def test_every_published_name_has_work(name: str) -> None:
    outline = capacity.published_profile(name)
    assert image_cost(outline, order(outline)).denoise > 1e13


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"size": (1000, 1024)}, "multiples of 16"),
        ({"size": (8192, 1024)}, "at most 4096"),
        ({"size": (0, 1024)}, "multiples of 16"),
        ({"num_steps": 0}, "between 1 and 200, got 0"),
        ({"guidance_scale": 21.0}, "between 0 and 20, got 21"),
        ({"guidance_scale": math.nan}, "between 0 and 20, got nan"),
        ({"solver": "magic"}, "'magic' is unknown"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changed: dict[str, object], complaint: str) -> None:
    outline = capacity.published_profile("pixart-sigma")
    with pytest.raises(InvalidParams, match=complaint):
        predict(outline, order(outline, **changed), ConstantRateDevice(1e14), Targets())


@pytest.mark.parametrize(
    ("name", "peak", "mfu", "alone"),
    [
        ("pixart-sigma", A100, 0.4, 32), ("pixart-sigma", A100, 0.5, 41), ("sd3-medium", A100, 0.4, 24), ("sd3-medium", A100, 0.5, 30),
        ("sd3.5-medium", A100, 0.5, 24), ("sd3.5-large", A100, 0.5, 8), ("flux.1-dev", A100, 0.4, 5), ("sdxl", A100, 0.5, 40),
        ("sd3.5-large", H100, 0.5, 28), ("flux.1-dev", H100, 0.5, 23),
    ],
)  # fmt: skip
def test_the_most_steps_that_meet_both_targets(name: str, peak: float, mfu: float, alone: int) -> None:
    """With one more, either an image alone or the images an hour miss; and under load, the share that comes too late is too large."""
    outline, device, targets = capacity.published_profile(name), ConstantRateDevice(mfu * peak), Targets()
    most = predict(outline, order(outline), device, targets).most_steps
    assert most[0] == alone
    assert 0 < most[1] < most[0]

    def met(steps: int) -> tuple[bool, bool]:
        found = predict(outline, order(outline, num_steps=steps), device, targets)
        return found.meets_latency_alone and found.meets_throughput, found.meets_latency

    assert (met(most[0])[0], met(most[0] + 1)[0]) == (True, False)
    assert (met(most[1])[1], met(most[1] + 1)[1]) == (True, False)


def work_of(encode: float, denoise: float, decode: float) -> ImageCost:
    """By the seconds on a device of one operation a second."""
    return ImageCost(encode, 0.0, (denoise / 20,) * 20, decode, rows=2, tokens=4096)


def fleet_latencies(seconds: StageDurations, replicas: dict[str, int], rate: float) -> list[float]:
    """Of images that go through the stages in turn, at each to the replica with fewer of two drawn at random, as Ray Serve does."""
    rng = random.Random(5)
    ends = {
        stage: [deque[float]() for _ in range(count)] for stage, count in replicas.items()
    }  # of who is at each replica
    coming = [(now, 0, now) for now in arrivals(rate, 40_000, seed=4)]
    heapq.heapify(coming)
    latencies = []
    while coming:
        now, stage, since = heapq.heappop(coming)
        if stage == len(capacity.STAGES):
            latencies.append(now - since)
            continue
        name = capacity.STAGES[stage]
        drawn = rng.sample(ends[name], min(2, replicas[name]))
        for queue in drawn:
            while queue and queue[0] <= now:
                queue.popleft()
        queue = min(drawn, key=len)
        queue.append((queue[-1] if queue else now) + getattr(seconds, name))
        heapq.heappush(coming, (queue[-1], stage + 1, since))
    return sorted(latencies)


@pytest.mark.parametrize(
    ("seconds", "targets"),
    [
        (StageDurations(0.04, 2.25, 0.08), Targets()),
        (StageDurations(0.04, 4.0, 0.08), Targets(5000.0, 9.0, 99.0)),
        (StageDurations(0.5, 1.0, 0.7), Targets(20_000.0, 4.0, 95.0)),
    ],
    ids=["one GPU is not enough", "many", "every stage is busy"],
)
def test_a_fleet_is_in_time_and_not_lavish(seconds: StageDurations, targets: Targets) -> None:
    replicas, latency = required_replicas(
        work_of(seconds.encode, seconds.denoise, seconds.decode), ConstantRateDevice(1.0), targets
    )
    assert latency <= targets.latency_s
    assert at(targets.share, fleet_latencies(seconds, replicas, targets.rate)) <= targets.latency_s
    for stage, count in replicas.items():
        assert count < 3 + 3 * targets.rate * getattr(seconds, stage)


def test_where_no_fleet_is_in_time_it_keeps_up() -> None:
    replicas, latency = required_replicas(work_of(0.04, 6.0, 0.08), ConstantRateDevice(1.0), Targets())
    assert replicas == {"encode": 1, "denoise": math.ceil(HOURLY * 6.0 / 0.8), "decode": 1}
    assert 6.12 < latency < math.inf


TICK = 0.1
STRAIGHT = CostCurve((2.0, 64.0), (TICK, 32 * TICK))  # of rows: a batch costs what its rows do
CHEAPER = CostCurve((2.0, 16.0), (TICK, 2 * TICK))  # 16 rows in the time of 4


def engine_latencies(curve: CostCurve, max_rows: int, rate: float, count: int = 6000) -> list[float]:
    """Of images of 20 guided steps, by the engine's own rule."""
    coming = [
        SimulatedSample(make_workload([2] * 20, [2.0] * 20, 64, curve, now))
        for now in arrivals(rate, count, seed=0)
    ]
    done = simulate(coming, partial(select_next_batch, limits=Limits(max_rows, 10**6), curve=curve), curve)
    return sorted(each.latency for each in done)


def test_the_engine_with_two_rows_a_tick_is_this_queue() -> None:
    """One image after the other; more rows share the machine among many, and most are later for it, as docs/capacity.md says."""
    queue = MDcQueue(HOURLY, 20 * TICK)
    one, many = engine_latencies(STRAIGHT, 2, HOURLY), engine_latencies(STRAIGHT, 16, HOURLY)
    assert sum(one) / len(one) == pytest.approx(2.0 + queue.mean_wait, rel=0.05)
    assert at(0.95, one) == pytest.approx(2.0 + queue.wait_quantile(0.95), rel=0.05)
    assert at(0.95, many) > 1.3 * at(0.95, one)


def test_a_measured_machine_gains_by_company() -> None:
    work = ImageCost(10.0, 0.0, (2.0,) * 20, 10.0, rows=2, tokens=64)
    device = MeasuredDevice(CHEAPER, text_seconds=0.01, decode_seconds=0.05, limits=Limits(16, 10**6))
    assert device.seconds(work) == StageDurations(0.02, pytest.approx(2.0), 0.05)
    assert device.busy_seconds(work) == StageDurations(
        0.02, pytest.approx(2.0 * 2 / 8), 0.05
    )  # 8 images in the time of 2
    rate = 1.0  # twice what there would be without company
    assert MDcQueue(rate, device.seconds(work).total).wait_quantile(0.95) == math.inf
    alone = at(0.95, engine_latencies(CHEAPER, 16, rate)) - 2.0
    assert device.denoise_waits(work, rate, 0.95, 1) == pytest.approx(alone, rel=0.15)
    assert device.denoise_waits(work, rate, 0.95, 1) < device.waits(work, rate, 0.95) < math.inf
    assert device.waits(work, 2.0, 0.95) == device.denoise_waits(work, 4.1, 0.95, 2) == math.inf


def test_published_times_are_predicted_at_their_share_of_the_peak(tables: ModuleType) -> None:
    for each in tables.PUBLISHED:
        outline = capacity.published_profile(each.model)
        work = image_cost(outline, order(outline, num_steps=each.steps))
        seconds = ConstantRateDevice(each.mfu * GPUS[each.gpu].peak_flops).seconds(work).total
        assert seconds == pytest.approx(each.seconds, rel=0.15), each


@pytest.mark.parametrize(("gpu", "how", "mfu"), [("a100", "eager", 0.37), ("a100", "compiled", 0.48)])
def test_one_share_of_the_peak_tells_the_times_of_unlike_models(
    tables: ModuleType, gpu: str, how: str, mfu: float
) -> None:
    """So the operations are counted rightly from one model to another: PixArt, SD3 and SDXL, 20 to 50 steps."""
    rows = [each for each in tables.PUBLISHED if each.gpu == gpu and each.how.startswith(how)]
    assert len(rows) >= 4
    for each in rows:
        outline = capacity.published_profile(each.model)
        work = image_cost(outline, order(outline, num_steps=each.steps))
        assert ConstantRateDevice(mfu * GPUS[gpu].peak_flops).seconds(work).total == pytest.approx(
            each.seconds, rel=0.15
        ), each


def test_the_documentation_has_these_tables(tables: ModuleType) -> None:
    text, plans = DOCUMENTATION.read_text(), tables.all_plans()
    assert tables.seconds_table(plans) in text
    assert tables.steps_table(plans) in text
    assert tables.published_table() in text


def test_it_starts_without_torch() -> None:
    code = "import sys, safelight.pipeline.capacity.predict; sys.exit(' '.join({'torch', 'diffusers', 'open_clip'} & set(sys.modules)) or None)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=DOCUMENTATION.parents[1]
    )
    assert (done.returncode, done.stderr) == (0, "")
