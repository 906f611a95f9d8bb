"""`safelight bench`: what this machine makes of a model, beside diffusers on the same weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, add_quantization
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import progress
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    from safelight.pipeline.benchmark.report import Benchmark, TraceResult

FAMILIES = ("pixart-clip", "pixart-sigma")  # whose networks diffusers' side of it can run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times the engine and diffusers in one run: matrix products, an image alone, and a trace of unlike requests that arrive faster "
        "than they can be served. Everything else on the machine should rest."
    )
    add_model(parser)
    add_quantization(parser)
    parser.add_argument(
        "--requests", type=int, default=60, metavar="N", help="of the trace; default %(default)s"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="times the trace is replayed in each way; default %(default)s",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out diffusers under torch.compile, which takes minutes to compile",
    )
    parser.add_argument(
        "--engine-only", action="store_true", help="leave out diffusers, and all but the trace"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(model=args.model, quantization=args.quantization)
    model = model_of(settings)
    if model.family not in FAMILIES and not args.engine_only:
        raise UserError(f"{model.id} is of the family {model.family}; compared are {', '.join(FAMILIES)}")
    if args.requests < 2 or args.rounds < 1:
        raise UserError(
            f"--requests must be at least 2 and --rounds at least 1, got {args.requests} and {args.rounds}"
        )
    with _telling() as say:
        with gc_frozen_imports():
            from safelight.pipeline.benchmark.report import run_benchmark, saturated_engine
        try:
            if args.engine_only:
                alone = saturated_engine(model, args.requests, args.rounds, say, settings.quantization)
            else:
                found = run_benchmark(
                    model, args.requests, args.rounds, not args.no_compile, say, settings.quantization
                )
        except ValueError as error:  # a checkpoint that cannot be loaded
            raise UserError(str(error)) from None
    if args.engine_only:
        print(
            json.dumps({"model": model.id, "mixed": {"ours": asdict(alone)}})
            if args.json
            else _of_engine(model.id, args.requests, alone)
        )
    else:
        print(json.dumps(found.as_dict()) if args.json else _as_text(found))
    return 0


def _of_engine(model_id: str, num_requests: int, found: TraceResult) -> str:
    rate = f"{found.images_per_hour:.0f} an hour, p50 {found.p50_s:.2f}, p95 {found.p95_s:.2f} s"
    return f"{model_id}, {num_requests} unlike images, more than can be served: {rate}"


@contextmanager
def _telling() -> Iterator[Callable[[str, int, int], None]]:
    with progress("loading the model") as say:
        yield lambda what, done, total: say(f"{what}: {done} of {total}" if total > 1 else what)


def _as_text(found: Benchmark) -> str:
    lines = [
        f"{found.model} on {found.device}, {found.dtype}, quantization {found.quantization}, {found.threads} threads",
        f"best matrix product      {found.gemm_peak_gflops:10.0f} GFLOPS",
        f"full ticks               {100 * found.mfu:10.1f} % of it, {100 * found.bookkeeping_share:.1f} % of a tick is bookkeeping",
        "one image alone, 20 steps under guidance",
    ]
    ours = found.batch1["ours_s"] or 0.0
    lines += [
        f"  {name.removesuffix('_s'):22} {value:10.3f} s   {value / ours:5.2f}"
        for name, value in found.batch1.items()
        if value
    ]
    lines.append(f"{found.num_requests} unlike images, {found.requests_per_second:.2f} a second")
    best = found.mixed["ours"]
    for name, mixed in found.mixed.items():
        if mixed and best:
            times = best.images_per_hour / mixed.images_per_hour
            lines.append(
                f"  {name:22} {mixed.images_per_hour:10.0f} an hour   p50 {mixed.p50_s:6.2f}, p95 {mixed.p95_s:6.2f} s   {times:5.2f}"
            )
    lines.append(
        f"what a request was told when it came is off by {100 * found.forecast_error:.0f} % (median)"
    )
    lines.append(
        f"under this load           {100 * found.mfu_under_trace:9.1f} % of the best product, ticks that are not full among them"
    )
    lines.append(
        f"8 steps behind four times 40 take {found.head_of_line:.2f}, behind forty times 40 {found.head_of_line_crowded:.2f} "
        "of what they take among four other eights"
    )
    fidelity = found.fidelity
    lines.append(
        f"against diffusers in float32: latents in float32 within {fidelity.float32_error:.1g}; images in {found.dtype} "
        f"{fidelity.psnr_db:.1f} dB inside what is drawn (diffusers' own {fidelity.diffusers_psnr_db:.1f})"
    )
    lines.append(
        "the last column: how many times the engine's figure, or the engine's images for one of theirs"
    )
    lines.append(
        f"memory at its peak       {found.peak_memory_bytes / 1e9:10.2f} GB, diffusers' weights among it"
    )
    return "\n".join(lines)
