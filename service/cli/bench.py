"""`safelight bench`: measures this engine beside diffusers, or a published model at its true shape."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safelight.service.cli import UserError, bench_random
from safelight.service.cli.arguments import add_model, add_quantization, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import progress
from safelight.service.cli.tables import format_table
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    from safelight.pipeline.benchmark.machine import Machine
    from safelight.pipeline.benchmark.report import Benchmark
    from safelight.pipeline.benchmark.trace_replay import TraceResult
    from safelight.pipeline.calibration.progress import ProgressCallback
    from safelight.pipeline.catalog.model_info import ModelInfo
    from safelight.service.settings import Settings

REQUESTS, ROUNDS = 60, 3  # defaults
FAMILIES = ("pixart-clip", "pixart-sigma")  # those that the diffusers loop of the benchmark can run
ALONE_TITLES = {
    "ours_s": "engine",
    "diffusers_eager_s": "diffusers",
    "diffusers_compiled_s": "diffusers, compiled",
}
SERVING_TITLES = {
    "ours": "engine",
    "serial_eager": "diffusers, one at a time",
    "serial_compiled": "diffusers, one at a time, compiled",
    "static_best": "diffusers, static batches",
}
SERVING_HEADER = ("", "throughput, images/h", "latency p50, s", "latency p95, s")
SPEED_UP = "engine's speed-up"
NOTES = (
    "speed-up: diffusers' latency over the engine's, or the engine's throughput over diffusers'\n"
    "MFU (model FLOPs utilisation): share of the peak; the peak is the fastest matrix product\n"
    "slowdown: latency of an 8-step request behind 40-step ones, over its latency among 8-step ones"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times the engine and diffusers in one run: matrix products, one image alone, and a trace of mixed "
        "requests that arrive faster than they can be served. Nothing else should run on the machine."
    )
    add_model(parser)
    add_quantization(parser)
    parser.add_argument("--requests", type=int, metavar="N", help=f"length of the trace; default {REQUESTS}")
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help=f"number of times that the trace is replayed for each way of serving; default {ROUNDS}",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out what runs under torch.compile, which takes minutes to compile",
    )
    parser.add_argument(
        "--engine-only", action="store_true", help="only replay the trace, and only on the engine"
    )
    bench_random.add_arguments(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="judge the figures by their bars: a table of verdicts, and exit status 1 if one was missed",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on stdout, with machine, commit and date; the table of --check goes to stderr",
    )


def run(args: argparse.Namespace) -> int:
    if args.random_weights is not None:
        return bench_random.run(args)
    bench_random.refuse_flags_without_effect(args)
    args.requests = REQUESTS if args.requests is None else args.requests
    args.rounds = ROUNDS if args.rounds is None else args.rounds
    settings = settings_of(**model_settings(args), quantization=args.quantization)
    model = model_of(settings)
    if model.family not in FAMILIES and not args.engine_only:
        raise UserError(
            f"{model.id} is of the family {model.family}; diffusers is run on {' and '.join(FAMILIES)} only"
        )
    if args.engine_only and args.no_compile:
        raise UserError(
            "--no-compile has no effect with --engine-only, which never runs diffusers; leave it out"
        )
    if args.requests < 2 or args.rounds < 1:
        raise UserError(
            f"--requests must be at least 2 and --rounds at least 1, got {args.requests} and {args.rounds}"
        )
    with progress("loading the model") as say:
        with gc_frozen_imports():
            from safelight.pipeline.benchmark.bars import BENCH_BARS, exit_status, judge
            from safelight.pipeline.benchmark.record import benchmark_record
        try:
            if args.engine_only:
                machine, figures, text = _measure_engine(args, settings, model, say)
            else:
                machine, figures, text = _measure(args, settings, model, say)
        except ValueError as error:  # a checkpoint that cannot be loaded
            raise UserError(str(error)) from None
    print(json.dumps(benchmark_record(machine, _command(args), figures), indent=1) if args.json else text)
    if not args.check:
        return 0
    verdicts = judge(BENCH_BARS, figures, machine.kind)
    print("\n" + bench_random.verdict_table(verdicts), file=sys.stderr if args.json else sys.stdout)
    return exit_status(verdicts)


def _measure(
    args: argparse.Namespace, settings: Settings, model: ModelInfo, progress: ProgressCallback
) -> tuple[Machine, Mapping[str, Any], str]:
    """The machine, everything that was measured on it, and that as text."""
    from safelight.pipeline.benchmark.report import BenchmarkOptions, run_benchmark

    options = BenchmarkOptions(args.requests, args.rounds, not args.no_compile, settings.quantization)
    benchmark = run_benchmark(model, options, progress)
    return benchmark.machine, benchmark.figures(), _as_text(benchmark)


def _measure_engine(
    args: argparse.Namespace, settings: Settings, model: ModelInfo, progress: ProgressCallback
) -> tuple[Machine, Mapping[str, Any], str]:
    """The same for `--engine-only`."""
    from safelight.pipeline.benchmark.machine import identify_machine
    from safelight.pipeline.benchmark.trace_replay import saturate_engine

    progress("matrix products")
    machine = identify_machine()
    result = saturate_engine(model, args.requests, args.rounds, progress, settings.quantization)
    text = f"{model.id}: {args.requests} mixed requests under overload\n" + _serving_table({"ours": result})
    return machine, {"model": model.id, "mixed": {"ours": asdict(result)}}, text


def _command(args: argparse.Namespace) -> str:
    """The command that measures again what these flags measured; flags of the output are left out."""
    words = ["safelight", "bench"]
    for flag in ("model", "variant", "quantization"):
        if value := getattr(args, flag):
            words += [f"--{flag}", value]
    words += ["--allow-unknown-config"] if args.allow_unknown_config else []
    words += ["--requests", str(args.requests), "--rounds", str(args.rounds)]
    words += [f"--{flag}" for flag in ("no-compile", "engine-only") if getattr(args, flag.replace("-", "_"))]
    return shlex.join(words)


def _as_text(benchmark: Benchmark) -> str:
    machine = (
        f"{benchmark.model} on {benchmark.device}, {benchmark.dtype}, "
        f"quantization {benchmark.quantization}, {benchmark.threads} threads"
    )
    load = f"{benchmark.num_requests} mixed requests, {benchmark.requests_per_second:.2f} a second (overload)"
    sections = (
        machine,
        f"One image alone, 20 steps under guidance\n{_alone_table(benchmark.batch1)}",
        f"{load}\n{_serving_table(benchmark.mixed)}",
        _metric_table(benchmark),
        NOTES,
    )
    return "\n\n".join(sections)


def _alone_table(seconds_by_way: Mapping[str, float | None]) -> str:
    engine_seconds = seconds_by_way["ours_s"] or 0.0
    rows = [
        (title, f"{seconds:.3f}", f"{seconds / engine_seconds:.2f}")
        for name, title in ALONE_TITLES.items()
        if (seconds := seconds_by_way[name])
    ]
    return format_table(("", "latency, s", SPEED_UP), rows)


def _serving_table(results: Mapping[str, TraceResult | None]) -> str:
    """Throughput and latency by way of serving, with the engine's speed-up if there is another way."""
    engine = results["ours"]
    assert engine is not None
    header, rows = list(SERVING_HEADER), []
    if len(results) > 1:
        header.append(SPEED_UP)
    for name, title in SERVING_TITLES.items():
        result = results.get(name)
        if result is None:
            continue
        row = [
            title,
            f"{result.images_per_hour:.0f}",
            f"{result.p50_s:.2f}",
            f"{result.p95_s:.2f}",
        ]
        if len(results) > 1:
            row.append(f"{engine.images_per_hour / result.images_per_hour:.2f}")
        rows.append(row)
    return format_table(header, rows)


def _metric_table(benchmark: Benchmark) -> str:
    """The metrics that are single values, a row each."""
    fidelity, dtype = benchmark.fidelity, benchmark.dtype
    rows = [
        ("peak", f"{benchmark.gemm_peak_gflops:.1f} GFLOPS"),
        ("MFU, full ticks", f"{100 * benchmark.mfu:.1f} %"),
        ("MFU, all ticks of the trace", f"{100 * benchmark.mfu_under_trace:.1f} %"),
        ("time outside the network, full ticks", f"{100 * benchmark.bookkeeping_share:.1f} %"),
        ("decoding, share of the time of one image", f"{100 * benchmark.decode_share:.1f} %"),
        ("forecast error of latency, median", f"{100 * benchmark.forecast_error:.0f} %"),
        ("slowdown behind 4 long requests", f"{benchmark.head_of_line:.2f}"),
        ("slowdown behind 40 long requests", f"{benchmark.head_of_line_crowded:.2f}"),
        ("largest latent error in float32 against diffusers", f"{fidelity.float32_error:.1g}"),
        (f"PSNR of the engine in {dtype} against diffusers in float32", f"{fidelity.psnr_db:.1f} dB"),
        (f"PSNR of diffusers in {dtype} against the same", f"{fidelity.diffusers_psnr_db:.1f} dB"),
        ("peak memory, with diffusers' weights", f"{benchmark.peak_memory_bytes / 1e9:.2f} GB"),
    ]
    return format_table(("metric", "value"), rows)
