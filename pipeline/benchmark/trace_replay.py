"""Throughput and latency of the mixed trace under overload, by this engine and by diffusers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest, prepare_engine
from safelight.pipeline.benchmark.replay import (
    LARGEST_BATCH,
    MAX_WAIT_S,
    Replay,
    ReplayResult,
    diffusers_replay,
    engine_replay,
)
from safelight.pipeline.benchmark.trace import TraceArrival, make_trace
from safelight.pipeline.calibration.progress import ProgressCallback, count_progress
from safelight.pipeline.catalog.model_info import ModelInfo

OVERLOAD = 1.5  # the load as a multiple of the engine's capacity: every way of serving is saturated


@dataclass(frozen=True, slots=True)
class TraceResult:
    """Throughput and latency of the trace: medians over the rounds."""

    images_per_hour: float
    p50_s: float  # latency
    p95_s: float


@dataclass(frozen=True, slots=True)
class TraceComparison:
    """The trace served in every way."""

    results: dict[str, TraceResult | None]  # by way of serving; None for one that was left out
    forecast_error: float  # median of |forecast / latency - 1| over the engine's requests
    flops_per_second: float  # of the engine's ticks


def overload_trace(
    subject: EngineUnderTest, num_requests: int, progress: ProgressCallback
) -> tuple[list[TraceArrival], float]:
    """The trace at `OVERLOAD` times the engine's measured capacity, and its rate in requests per second."""
    trace = make_trace(num_requests, subject.model.sizes)
    replay = engine_replay(subject.make_engine, subject.texts)
    result = replay(
        [replace(arrival, at=0.0) for arrival in trace], count_progress(progress, "capacity", num_requests)
    )
    rate = OVERLOAD * result.images_per_hour / 3600
    return [replace(arrival, at=arrival.at / rate) for arrival in trace], rate


def compare_on_trace(
    subject: EngineUnderTest,
    loops: Mapping[str, DiffusersLoop],
    arrivals: Sequence[TraceArrival],
    rounds: int,
    progress: ProgressCallback,
) -> TraceComparison:
    """Replay the trace in each way of serving, in turns.

    Args:
        subject: the engine under test.
        loops: diffusers by name, `eager` and possibly `compiled`.
        arrivals: the trace.
        rounds: how often each way replays it; figures are medians over the rounds.
        progress: called with what is being measured.
    """
    replays = _ways_of_serving(subject, loops)
    rounds_by_way: dict[str, list[ReplayResult]] = {name: [] for name in replays}
    for number in range(rounds):
        for name, replay in replays.items():
            label = f"round {number + 1} of {rounds}: {name}"
            result = replay(arrivals, count_progress(progress, label, len(arrivals)))
            rounds_by_way[name].append(result)
    medians = {name: _median_result(results) for name, results in rounds_by_way.items()}
    static = [medians.pop(name) for name in list(medians) if name.startswith("static")]
    best_static = max(static, key=lambda result: result.images_per_hour)
    by_way: dict[str, TraceResult | None] = {"serial_compiled": None}
    return TraceComparison(
        by_way | medians | {"static_best": best_static},
        statistics.median(
            abs(forecast / latency - 1)
            for result in rounds_by_way["ours"]
            for forecast, latency in zip(result.forecasts, result.latencies, strict=True)
        ),
        statistics.median(result.flops_per_second or 0.0 for result in rounds_by_way["ours"]),
    )


def saturate_engine(
    model: ModelInfo,
    num_requests: int,
    rounds: int,
    progress: ProgressCallback,
    quantization: str = "none",
) -> TraceResult:
    """The trace at `OVERLOAD` by the engine alone: medians over `rounds`, without diffusers.

    Args:
        model: the model to measure.
        num_requests: length of the trace.
        rounds: how often it is replayed.
        progress: called with what is being measured.
        quantization: of the denoiser.
    """
    subject = prepare_engine(model, quantization, progress)
    replay = engine_replay(subject.make_engine, subject.texts)
    arrivals, _ = overload_trace(subject, num_requests, progress)
    return _median_result(
        [
            replay(arrivals, count_progress(progress, f"round {number + 1} of {rounds}", num_requests))
            for number in range(rounds)
        ]
    )


def _ways_of_serving(subject: EngineUnderTest, loops: Mapping[str, DiffusersLoop]) -> dict[str, Replay]:
    replays: dict[str, Replay] = {"ours": engine_replay(subject.make_engine, subject.texts)}
    for name, loop in loops.items():
        replays[f"serial_{name}"] = diffusers_replay(loop, subject.texts, largest_batch=1, max_wait_s=0.0)
        replays[f"static_{name}"] = diffusers_replay(loop, subject.texts, LARGEST_BATCH, MAX_WAIT_S)
    return replays


def _median_result(results: Sequence[ReplayResult]) -> TraceResult:
    figures = [TraceResult(result.images_per_hour, result.p50_s, result.p95_s) for result in results]
    return TraceResult(*map(statistics.median, zip(*map(astuple, figures), strict=True)))
