"""The whole benchmark in one run, side by side: what `safelight bench` measures and what it says.

Text states are ready before the clock starts, the same for all, and latents are not decoded: denoising is what is compared.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from typing import Any

import torch

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.models.networks.interface import PackedNetwork
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner, engine_on
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop, load_loop
from safelight.pipeline.benchmark.fidelity import Fidelity, measure_fidelity
from safelight.pipeline.benchmark.replay import LARGEST_BATCH, PATIENCE_S, Replay, by_diffusers, by_engine
from safelight.pipeline.benchmark.trace import PROMPTS, SOLVERS, TraceArrival, make_trace
from safelight.pipeline.calibration.cost_curve import measure_curve
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import UNKNOWN, CostCurve

OVERLOAD = 1.5  # the load, as a multiple of what the engine was seen to serve: everyone is saturated
TICKS = 30  # of full rows, that bookkeeping and MFU are taken from
REPEATS = 5  # of an image alone

Say = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


@dataclass(frozen=True, slots=True)
class TraceResult:
    """What came of the trace: medians over the rounds."""

    images_per_hour: float
    p50_s: float  # latency
    p95_s: float


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """The engine under test: every run has one of its own, on the same network and the same cost curve."""

    model: ModelInfo
    runner: StepRunner
    texts: Mapping[str, TextStates]
    curve: CostCurve  # of a tick, as measured before anything else

    def make_engine(self) -> Engine:
        engine = engine_on(self.runner, self.model)
        engine.curve = self.curve
        return engine


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Figures of one run on one machine; times are good for ratios with each other only."""

    model: str
    device: str
    dtype: str
    quantization: str
    threads: int
    gemm_peak_gflops: float
    mfu: float  # of full ticks of equal samples: operations of their rows over what the best product does in their seconds
    mfu_under_trace: float  # of all ticks of the trace, which are not all full and whose rows are unlike
    batch1: Mapping[str, float | None]
    mixed: Mapping[str, TraceResult | None]
    num_requests: int
    requests_per_second: float
    curve: CostCurve  # of a tick, as measured before the rest
    forecast_error: float  # of the seconds that a request was told when it came, by how much they differ from what it took: median
    head_of_line: (
        float  # seconds of a short request behind four long ones, of those among four others as short
    )
    head_of_line_crowded: float  # the same behind forty, which are more than a tick holds
    fidelity: Fidelity
    bookkeeping_share: float  # of a full tick, what is not the network's evaluation
    peak_memory_bytes: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run_benchmark(
    model: ModelInfo,
    num_requests: int,
    rounds: int,
    with_compiled: bool,
    say: Say,
    quantization: str = "none",
) -> Benchmark:
    """Everything on the clock, one after another, in `rounds` for the trace."""
    subject = _prepare(model, say, quantization)
    runner, texts, curve, make_engine = subject.runner, subject.texts, subject.curve, subject.make_engine
    device, dtype = runner.device, runner.dtype
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))

    say("matrix products", 0, 1)
    peak = gemm_peak(device, dtype)
    loops = {"eager": load_loop(model, dtype, device, scale, is_compiled=False)}
    if with_compiled:
        loops["compiled"] = load_loop(model, dtype, device, scale, is_compiled=True)
    _warm_up(loops, _like(model), texts, say)
    batch1 = _batch1(_like(model), make_engine(), loops, texts, say)
    arrivals, rate = _too_many(subject, num_requests, say)
    mixed, forecast_error, flops_per_second = _mixed(
        _replays(make_engine, loops, texts), arrivals, rounds, say
    )
    say("bookkeeping", 0, 1)
    blocked, crowded = (_head_of_line(_like(model), make_engine, texts, count) for count in (4, 40))
    share, mfu = _full_ticks(runner, make_engine(), _like(model), texts, peak)
    return Benchmark(
        model=model.id,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}",
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
        threads=torch.get_num_threads(),
        gemm_peak_gflops=peak / 1e9,
        mfu=mfu,
        mfu_under_trace=flops_per_second / peak,
        batch1=batch1,
        mixed=mixed,
        num_requests=num_requests,
        requests_per_second=rate,
        curve=curve,
        forecast_error=forecast_error,
        head_of_line=blocked,
        head_of_line_crowded=crowded,
        fidelity=measure_fidelity(model, partial(_tell, say, "fidelity", 128), quantization),
        bookkeeping_share=share,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _prepare(model: ModelInfo, say: Say, quantization: str) -> EngineUnderTest:
    runner, encoder = build_runner(model, quantization=quantization), build_text_encoder(model)
    texts = {prompt: encoder.encode([prompt])[0] for prompt in (*PROMPTS, "")}
    say("what a tick costs", 0, 1)
    return EngineUnderTest(model, runner, texts, measure_curve(engine_on(runner, model), model))


def _too_many(subject: EngineUnderTest, num_requests: int, say: Say) -> tuple[list[TraceArrival], float]:
    """The trace at `OVERLOAD` of what the engine was seen to serve, and that rate, in requests a second."""
    trace = make_trace(num_requests, subject.model.sizes)
    replay = by_engine(subject.make_engine, subject.texts)
    at_once = replay([replace(each, at=0.0) for each in trace], partial(_tell, say, "capacity", num_requests))
    rate = OVERLOAD * at_once.images_per_hour / 3600
    return [replace(each, at=each.at / rate) for each in trace], rate


def saturated_engine(
    model: ModelInfo, num_requests: int, rounds: int, say: Say, quantization: str = "none"
) -> TraceResult:
    """The engine alone on the trace at `OVERLOAD` of what it can do: medians over `rounds`. About as long as it takes to draw them."""
    subject = _prepare(model, say, quantization)
    replay = by_engine(subject.make_engine, subject.texts)
    arrivals, _ = _too_many(subject, num_requests, say)
    found = []
    for number in range(rounds):
        replayed = replay(arrivals, partial(_tell, say, f"round {number + 1} of {rounds}", num_requests))
        found.append(TraceResult(replayed.images_per_hour, replayed.p50_s, replayed.p95_s))
    return TraceResult(*map(statistics.median, zip(*map(astuple, found), strict=True)))


def _like(model: ModelInfo) -> GenerationParams:
    """The image that is drawn alone: 20 steps under guidance."""
    width, height = model.native_size
    return GenerationParams(PROMPTS[0], "", width, height, 20, 4.0, "dpmpp_2m", 1)


def _warm_up(
    loops: Mapping[str, DiffusersLoop], params: GenerationParams, texts: Mapping[str, TextStates], say: Say
) -> None:
    """Every shape and solver that the trace may bring, before the clock runs: a compiled network compiles for some of them anew.

    Solvers, because their schedulers give times of different types.
    """
    counts = range(1, LARGEST_BATCH + 1)
    shapes = [
        (count, w, solver) for count in counts for w in (1.0, params.guidance_scale) for solver in SOLVERS
    ]
    for number, (count, w, solver) in enumerate(shapes):
        say("warming up", number, len(shapes))
        for loop in loops.values():
            for prompt in (min(texts, key=len), max(texts, key=len)):
                one = replace(params, num_steps=2, guidance_scale=w, prompt=prompt, solver=solver)
                loop.draw([one] * count, dict(texts))


def _batch1(
    params: GenerationParams,
    engine: Engine,
    loops: Mapping[str, DiffusersLoop],
    texts: Mapping[str, TextStates],
    say: Say,
) -> dict[str, float | None]:
    """Median seconds of one image with nothing beside it, in turns."""

    def ours() -> None:
        engine.add("only", params, texts[params.prompt], texts[""])
        while engine.has_work:
            engine.step()

    ways: dict[str, Callable[[], object]] = {"ours_s": ours}
    ways |= {f"diffusers_{name}_s": partial(loop.draw, [params], dict(texts)) for name, loop in loops.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(-1, REPEATS):  # the first warms up
        say("an image alone", repeat + 1, REPEATS + 1)
        for name, draw in ways.items():
            started = time.perf_counter()
            draw()
            times[name].append(time.perf_counter() - started)
    return {"diffusers_compiled_s": None} | {
        name: statistics.median(each[1:]) for name, each in times.items()
    }


def _replays(
    make_engine: Callable[[], Engine], loops: Mapping[str, DiffusersLoop], texts: Mapping[str, TextStates]
) -> dict[str, Replay]:
    replays: dict[str, Replay] = {"ours": by_engine(make_engine, texts)}
    for name, loop in loops.items():
        replays[f"serial_{name}"] = by_diffusers(loop, texts, largest_batch=1, patience_s=0.0)
        replays[f"static_{name}"] = by_diffusers(loop, texts, LARGEST_BATCH, PATIENCE_S)
    return replays


def _mixed(
    replays: Mapping[str, Replay], arrivals: Sequence[TraceArrival], rounds: int, say: Say
) -> tuple[dict[str, TraceResult | None], float, float]:
    """The trace replayed in each way, in turns; `static_best` is the static batching with most images an hour.

    And by how much the engine's forecasts were off, and how many operations its ticks did in a second.
    """
    found: dict[str, list[TraceResult]] = {name: [] for name in replays}
    errors: list[float] = []
    rates: list[float] = []
    for number in range(rounds):
        for name, replay in replays.items():
            replayed = replay(
                arrivals, partial(_tell, say, f"round {number + 1} of {rounds}: {name}", len(arrivals))
            )
            found[name].append(TraceResult(replayed.images_per_hour, replayed.p50_s, replayed.p95_s))
            rates += [replayed.flops_per_second] if replayed.flops_per_second else []
            errors += [
                abs(told / took - 1)
                for told, took in zip(replayed.forecasts, replayed.latencies, strict=False)
            ]
    medians = {
        name: TraceResult(*map(statistics.median, zip(*map(astuple, each), strict=True)))
        for name, each in found.items()
    }
    static = [medians.pop(name) for name in list(medians) if name.startswith("static")]
    best = max(static, key=lambda mixed: mixed.images_per_hour)
    return (
        {"serial_compiled": None} | medians | {"static_best": best},
        statistics.median(errors),
        statistics.median(rates),
    )


def _head_of_line(
    params: GenerationParams,
    make_engine: Callable[[], Engine],
    texts: Mapping[str, TextStates],
    num_long: int,
) -> float:
    """An 8-step request that comes five ticks after `num_long` of 40 steps, against one of five such that start together: a median."""

    def seconds(others: int, steps: int, ticks_before: int) -> float:
        engine = make_engine()
        for number in range(others):
            engine.add(
                str(number), replace(params, num_steps=steps, seed=number), texts[params.prompt], texts[""]
            )
        for _ in range(ticks_before):
            engine.step()
        started = time.perf_counter()
        engine.add("short", replace(params, num_steps=8, seed=9), texts[params.prompt], texts[""])
        while "short" not in {outcome.request_id for outcome in engine.step()}:
            pass
        return time.perf_counter() - started

    pairs = [(seconds(num_long, 40, 5), seconds(4, 8, 0)) for _ in range(REPEATS)]
    return statistics.median(behind / fair for behind, fair in pairs)


def _full_ticks(
    runner: StepRunner, engine: Engine, params: GenerationParams, texts: Mapping[str, TextStates], peak: float
) -> tuple[float, float]:
    """Of ticks with as many rows as the engine's limit: the share that is not the network's, and the operations' share of `peak`."""
    engine.curve = UNKNOWN  # by which no tick is too large
    for seed in range(LARGEST_BATCH):
        engine.add(str(seed), replace(params, seed=seed, num_steps=TICKS), texts[params.prompt], texts[""])
    seconds, evaluating, flops = 0.0, 0.0, 0
    with timed(runner) as clock:
        for tick in range(TICKS):
            before = clock.seconds
            started = time.perf_counter()
            engine.step()
            if tick and engine.last_tick:  # the first also begins the samples
                seconds += time.perf_counter() - started
                evaluating += clock.seconds - before
                flops += engine.last_tick.flops
    return 1.0 - evaluating / seconds, flops / seconds / peak


class _Clock:
    """Seconds of network evaluations so far."""

    seconds = 0.0


@contextmanager
def timed(runner: StepRunner) -> Iterator[_Clock]:
    """Count the seconds that `runner`'s network evaluates."""
    clock, network = _Clock(), runner.network

    def predict(*given: Any) -> Any:
        started = time.perf_counter()
        out = network.predict(*given)
        runner.wait()
        clock.seconds += time.perf_counter() - started
        return out

    runner.network = _Watched(network, predict)
    try:
        yield clock
    finally:
        runner.network = network


@dataclass(frozen=True, slots=True)
class _Watched:
    """A network whose `predict` is another."""

    network: PackedNetwork
    predict: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def _tell(say: Say, what: str, total: int, done: int) -> None:
    say(what, done, total)
