"""What the benchmark measures, on a clock that only the work moves: each figure is known beforehand.

The bars are those of docs/performance.md.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from safelight.models.packed.dit import PackedDiT
from safelight.pipeline.benchmark import full_ticks, head_of_line, replay
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest
from safelight.pipeline.benchmark.full_ticks import TICKS, measure_full_ticks
from safelight.pipeline.benchmark.head_of_line import measure_head_of_line
from safelight.pipeline.benchmark.replay import diffusers_replay, engine_replay
from safelight.pipeline.benchmark.trace import PROMPTS, TraceArrival
from safelight.pipeline.benchmark.trace_replay import compare_on_trace, overload_trace
from safelight.pipeline.calibration import peak
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.engine import device_clock, engine
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.clock import ManualClock
from tests.pipeline.benchmark.timed_runner import TimedRunner
from tests.pipeline.parts import model, params, runner, states

TEXTS: Mapping[str, TextStates] = {prompt: states(prompt) for prompt in (*PROMPTS, "")}
ROW = float(forward_flops(runner().network.config, 8, 8, 16))
CURVE = CostCurve((2 * ROW, 16 * ROW), (0.010, 0.040))  # eight images in the time of four
SECONDS = 0.25  # of a batch of diffusers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()
    clock.install(monkeypatch, engine, device_clock, replay, head_of_line)
    return clock


@pytest.fixture
def subject(clock: ManualClock) -> EngineUnderTest:
    return EngineUnderTest(model(), TimedRunner(clock, CURVE), TEXTS, CURVE)


def ignore_progress(*args: object) -> None:
    pass


class Recorder:
    """A stand-in for diffusers that records its batches, each of which takes SECONDS."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.batches: list[list[int]] = []

    def generate(self, batch: Sequence[GenerationParams], texts: object) -> None:
        self.batches.append([p.seed for p in batch])
        self.clock.now += SECONDS

    @property
    def loop(self) -> DiffusersLoop:
        """Itself, as the type that a replay takes."""
        return cast(DiffusersLoop, self)


def arrivals(*requests: tuple[float, dict[str, Any]]) -> list[TraceArrival]:
    """A trace from pairs of a time and the parameters that differ from the default."""
    return [
        TraceArrival(at, params(seed=seed, prompt=PROMPTS[0], **changes))
        for seed, (at, changes) in enumerate(requests)
    ]


def test_static_batches_hold_equal_requests_and_wait_until_they_are_full(clock: ManualClock) -> None:
    recorder = Recorder(clock)
    other: dict[str, Any] = {"num_steps": 9}
    trace = arrivals((0.0, {}), (0.0, other), (0.5, {}), (0.6, other), (0.7, {}), (9.0, {}))
    done: list[int] = []
    result = diffusers_replay(recorder.loop, TEXTS, largest_batch=2, max_wait_s=2.0)(trace, done.append)
    assert recorder.batches == [[0, 2], [1, 3], [4], [5]]
    assert done == [2, 4, 5, 6]
    # The fifth waits for two seconds in vain, the last knows that nobody comes.
    assert result.latencies == pytest.approx((0.75, 1.0, 0.25, 0.4, 2.25, SECONDS))
    assert result.seconds == pytest.approx(9.25)
    assert result.images_per_hour == pytest.approx(3600 * 6 / 9.25)
    assert result.p50_s == pytest.approx(statistics.median(result.latencies))
    assert result.p95_s == pytest.approx(statistics.quantiles(result.latencies, n=20)[-1])


def test_requests_that_differ_in_what_a_batch_shares_are_not_batched(clock: ManualClock) -> None:
    recorder = Recorder(clock)
    changes: Sequence[dict[str, Any]] = (
        {},
        {"solver": "euler"},
        {"guidance_scale": 1.0},
        {"width": 96},
        {"height": 96},
        {},
    )
    trace = arrivals(*((0.0, change) for change in changes))
    diffusers_replay(recorder.loop, TEXTS, largest_batch=8, max_wait_s=0.0)(trace, ignore_progress)
    assert recorder.batches == [[0, 5], [1], [2], [3], [4]]


def test_one_at_a_time_is_first_come_first_served(clock: ManualClock) -> None:
    recorder = Recorder(clock)
    replay = diffusers_replay(recorder.loop, TEXTS, largest_batch=1, max_wait_s=0.0)
    result = replay(arrivals((0.0, {}), (0.0, {}), (0.1, {})), ignore_progress)
    assert recorder.batches == [[0], [1], [2]]
    assert result.latencies == pytest.approx((SECONDS, 2 * SECONDS, 3 * SECONDS - 0.1))


def test_the_engine_serves_every_request(subject: EngineUnderTest) -> None:
    done: list[int] = []
    trace = arrivals((0.0, {}), (0.0, {"num_steps": 3}), (5.0, {"guidance_scale": 1.0}))
    result = engine_replay(subject.make_engine, TEXTS)(trace, done.append)
    assert done == [1, 2, 3]
    both, single = CURVE.seconds_for(4 * ROW), CURVE.seconds_for(2 * ROW)
    seconds = (3 * both + 3 * single, 3 * both, 6 * CURVE.seconds_for(ROW))
    assert result.latencies == pytest.approx(seconds)
    # The first forecast is made before the second request comes.
    assert result.forecasts == pytest.approx((6 * single, *seconds[1:]), rel=0.01)
    assert result.seconds == pytest.approx(5.0 + seconds[2])
    work = ROW * (3 * 4 + 3 * 2 + 6)
    assert result.flops_per_second == pytest.approx(work / (seconds[0] + seconds[2]), rel=1e-6)


def test_forecasts_are_right_within_their_bar(subject: EngineUnderTest, clock: ManualClock) -> None:
    """Under one and a half times what the engine can do, as the benchmark has it."""
    trace, rate = overload_trace(subject, 40, ignore_progress)
    assert trace[-1].at == pytest.approx(40 / rate, rel=0.5)
    recorder = Recorder(clock)
    comparison = compare_on_trace(subject, {"eager": recorder.loop}, trace, 1, ignore_progress)
    assert 0.0 < comparison.forecast_error < 0.15
    assert {name for name, result in comparison.results.items() if result} == {
        "ours", "serial_eager", "static_best",
    }  # fmt: skip
    assert sorted(sum(recorder.batches, [])) == sorted([*range(40)] * 2)


def test_a_short_request_behind_long_ones_is_not_blocked(subject: EngineUnderTest) -> None:
    assert measure_head_of_line(subject, 4) < 1.5
    assert 1.0 < measure_head_of_line(subject, 40) < 2.0


def test_shares_of_a_full_tick(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of three quarters of a tick: the rest is overhead, and both count for the MFU."""
    clock.install(monkeypatch, full_ticks)
    network = runner().network
    assert isinstance(network, PackedDiT)
    predict = PackedDiT.predict

    def timed_predict(self: PackedDiT, *args: Any) -> list[Tensor]:
        clock.now += 0.03
        return predict(self, *args)

    monkeypatch.setattr(PackedDiT, "predict", timed_predict)
    forward = StepRunner.forward

    def timed_forward(self: StepRunner, *args: Any) -> list[Tensor]:
        clock.now += 0.01
        return forward(self, *args)

    monkeypatch.setattr(StepRunner, "forward", timed_forward)
    subject = EngineUnderTest(model(), runner(), TEXTS, CURVE)
    result = measure_full_ticks(subject, peak=1e12)
    assert TICKS > 2
    assert result.overhead_share == pytest.approx(0.25)
    assert result.mfu == pytest.approx(16 * ROW / 0.04 / 1e12)


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    clock.install(monkeypatch, peak)
    seconds = {(8, 16, 32): 0.004, (16, 16, 16): 0.001}
    monkeypatch.setattr(peak, "SHAPES", tuple(seconds))

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        clock.now += seconds[(*x.shape, len(weight))]
        return x @ weight.T

    monkeypatch.setattr("safelight.pipeline.calibration.peak.F.linear", linear)
    assert gemm_peak(torch.device("cpu"), torch.float32) == pytest.approx(2 * 16**3 / 0.001)
