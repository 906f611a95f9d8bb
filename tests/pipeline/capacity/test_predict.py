"""Predictions: the most steps, fleets against their simulation, and published times."""

import heapq
import math
import random
import subprocess
import sys
from collections import deque

import pytest

from docs.figures.capacity import PublishedTime, published_times
from docs.figures.data import ROOT, load_runs
from safelight.pipeline.capacity.devices import GPUS, STAGES, ConstantRateDevice, StageDurations
from safelight.pipeline.capacity.image_cost import ImageCost, image_cost
from safelight.pipeline.capacity.model_profiles import published_profile
from safelight.pipeline.capacity.predict import Targets, predict, required_replicas
from tests.pipeline.capacity.arrivals import poisson_arrivals, quantile
from tests.pipeline.capacity.specs import default_spec

RATE = 1000 / 3600  # a thousand an hour
A100, H100 = GPUS["a100"].peak_flops, GPUS["h100"].peak_flops
PUBLISHED = published_times(load_runs())


@pytest.mark.parametrize(
    ("name", "peak", "mfu", "max_steps"),
    [
        ("pixart-sigma", A100, 0.4, 32),
        ("pixart-sigma", A100, 0.5, 41),
        ("sd3-medium", A100, 0.4, 24),
        ("sd3-medium", A100, 0.5, 30),
        ("sd3.5-medium", A100, 0.5, 24),
        ("sd3.5-large", A100, 0.5, 8),
        ("flux.1-dev", A100, 0.4, 5),
        ("sdxl", A100, 0.5, 40),
        ("sd3.5-large", H100, 0.5, 28),
        ("flux.1-dev", H100, 0.5, 23),
    ],
)
def test_one_more_step_than_the_most_misses_a_target(
    name: str, peak: float, mfu: float, max_steps: int
) -> None:
    """For an image alone the latency or the throughput, and under load the latency at the percentile."""
    profile, device, targets = published_profile(name), ConstantRateDevice(mfu * peak), Targets()
    prediction = predict(profile, default_spec(profile), device, targets)
    alone, under_load = prediction.max_steps_alone, prediction.max_steps_under_load
    assert alone == max_steps
    assert 0 < under_load < alone

    def meets(num_steps: int) -> tuple[bool, bool]:
        prediction = predict(profile, default_spec(profile, num_steps=num_steps), device, targets)
        return prediction.meets_latency_alone and prediction.meets_throughput, prediction.meets_latency

    assert (meets(alone)[0], meets(alone + 1)[0]) == (True, False)
    assert (meets(under_load)[1], meets(under_load + 1)[1]) == (True, False)


def cost_of(seconds: StageDurations) -> ImageCost:
    """An image that takes these seconds on a device of one operation a second."""
    return ImageCost(seconds.encode, 0.0, (seconds.denoise / 20,) * 20, seconds.decode, rows=2, tokens=4096)


def fleet_latencies(seconds: StageDurations, replicas: dict[str, int], rate: float) -> list[float]:
    """Sorted latencies of images that pass the stages in turn, balanced as Ray Serve does.

    At each stage an image goes to the replica with the shorter queue of two replicas chosen at random.
    """
    rng = random.Random(5)
    finish_times = {stage: [deque[float]() for _ in range(count)] for stage, count in replicas.items()}
    events = [(arrival, 0, arrival) for arrival in poisson_arrivals(rate, 40_000, seed=4)]
    heapq.heapify(events)
    latencies = []
    while events:
        time, stage_index, arrival = heapq.heappop(events)
        if stage_index == len(STAGES):
            latencies.append(time - arrival)
            continue
        stage = STAGES[stage_index]
        candidates = rng.sample(finish_times[stage], min(2, replicas[stage]))
        for queue in candidates:
            while queue and queue[0] <= time:
                queue.popleft()
        queue = min(candidates, key=len)
        queue.append((queue[-1] if queue else time) + getattr(seconds, stage))
        heapq.heappush(events, (queue[-1], stage_index + 1, arrival))
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
def test_required_replicas_meet_the_targets_without_waste(seconds: StageDurations, targets: Targets) -> None:
    replicas, latency = required_replicas(cost_of(seconds), ConstantRateDevice(1.0), targets)
    assert latency <= targets.latency_s
    simulated = fleet_latencies(seconds, replicas, targets.rate)
    assert quantile(targets.share, simulated) <= targets.latency_s
    for stage, count in replicas.items():
        assert count < 3 + 3 * targets.rate * getattr(seconds, stage)


def test_where_no_fleet_meets_the_latency_it_meets_the_throughput() -> None:
    seconds = StageDurations(0.04, 6.0, 0.08)
    replicas, latency = required_replicas(cost_of(seconds), ConstantRateDevice(1.0), Targets())
    assert replicas == {"encode": 1, "denoise": math.ceil(RATE * 6.0 / 0.8), "decode": 1}
    assert 6.12 < latency < math.inf


def test_the_implied_mfu_is_that_of_the_published_seconds() -> None:
    """By our count of operations, which tests/pipeline/capacity/test_image_cost.py holds to torch's."""
    for row in PUBLISHED:
        implied = predicted_seconds(row, 1.0) / row.seconds
        assert row.mfu == pytest.approx(implied, abs=0.0051), row


@pytest.mark.parametrize(("gpu", "how", "mfu"), [("a100", "eager", 0.37), ("a100", "compiled", 0.48)])
def test_one_mfu_predicts_the_times_of_different_models(gpu: str, how: str, mfu: float) -> None:
    """So operations are counted consistently across PixArt, SD3 and SDXL at 20 to 50 steps."""
    rows = [row for row in PUBLISHED if row.gpu == gpu and row.how.startswith(how)]
    assert len(rows) >= 4
    for row in rows:
        assert predicted_seconds(row, mfu) == pytest.approx(row.seconds, rel=0.15), row


def predicted_seconds(row: PublishedTime, mfu: float) -> float:
    """Seconds of one image alone for a row of the table of published times."""
    profile = published_profile(row.model)
    cost = image_cost(profile, default_spec(profile, num_steps=row.steps))
    return ConstantRateDevice(mfu * GPUS[row.gpu].peak_flops).stage_seconds(cost).total


def test_it_starts_without_torch() -> None:
    code = (
        "import sys, safelight.pipeline.capacity.predict, safelight.pipeline.capacity.model_profiles;"
        "sys.exit(' '.join({'torch', 'diffusers', 'open_clip'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
