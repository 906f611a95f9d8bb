"""`safelight bench --random-weights`: a published model at its true shape, without its weights."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safelight.pipeline.capacity.model_profiles import list_shapes
from safelight.pipeline.errors import InvalidParams
from safelight.service.cli import UserError
from safelight.service.cli.progress import progress
from safelight.service.cli.tables import format_table
from safelight.service.errors import as_invalid_request
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    from safelight.pipeline.benchmark.bars import Verdict
    from safelight.pipeline.benchmark.random_weights import RandomWeightsResult

IN_FLIGHT = "1,2,4,8"
MAX_IN_FLIGHT = 64
RUN_HEADER = (
    "blocks", "in flight", "latency, s", "images/h", "MFU", "denoising, s", "decoding, s", "peak memory, GB",
    "warm-up, s",
)  # fmt: skip
NOTE = (
    "latency: from the request of all images in flight until the last one is decoded, without text encoder\n"
    "MFU (model FLOPs utilisation): of denoising, as a share of the best matrix product"
)
# Flags of the comparison with diffusers, and those that only --random-weights reads, by their attributes.
OF_COMPARISON = ("model", "variant", "allow_unknown_config", "requests", "rounds", "engine_only")
OF_RANDOM_WEIGHTS = ("size", "steps", "in_flight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--random-weights` and the flags that go with it."""
    group = parser.add_argument_group("a published model at its true shape, without its weights")
    group.add_argument(
        "--random-weights",
        metavar="NAME",
        help=f"time this model with random weights: {', '.join(list_shapes())}; tiny-NAME shrinks it",
    )
    group.add_argument("--size", metavar="WxH", help="image size in pixels; default: the native size")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the model's")
    group.add_argument(
        "--in-flight",
        metavar="N,N",
        help=f"how many images are drawn together, one run each; default {IN_FLIGHT}",
    )


def refuse_flags_without_effect(args: argparse.Namespace) -> None:
    """Raise `UserError` for flags that only `--random-weights` reads."""
    for name in OF_RANDOM_WEIGHTS:
        if getattr(args, name) is not None:
            raise UserError(f"{_flag(name)} has no effect without --random-weights; leave it out")


def run(args: argparse.Namespace) -> int:
    """Measure, print and judge; as `safelight.service.cli.bench.run`."""
    _refuse_flags_of_the_comparison(args)
    size, in_flight = _read_size(args.size), _read_in_flight(args.in_flight or IN_FLIGHT)
    with progress("loading torch") as say:
        with gc_frozen_imports():
            from safelight.pipeline.benchmark.bars import RANDOM_WEIGHTS_BARS, exit_status, judge
            from safelight.pipeline.benchmark.random_weights import (
                DoesNotFit,
                RandomWeightsOptions,
                measure_random_weights,
            )
            from safelight.pipeline.benchmark.record import benchmark_record
        options = RandomWeightsOptions(
            name=args.random_weights,
            size=size,
            num_steps=args.steps,
            in_flight=in_flight,
            with_compiled=not args.no_compile,
            quantization=args.quantization or "none",
        )
        try:
            result = measure_random_weights(options, say)
        except KeyError:
            names = ", ".join(list_shapes())
            raise UserError(
                f"--random-weights must be one of {names}, or tiny-NAME, got {args.random_weights!r}"
            ) from None
        except InvalidParams as error:
            raise UserError(str(as_invalid_request(error))) from None
        except (DoesNotFit, ValueError) as error:  # also quantization that the device does not support
            raise UserError(str(error)) from None
    figures = result.figures()
    verdicts = judge(RANDOM_WEIGHTS_BARS, figures, result.machine.kind)
    if args.json:
        print(json.dumps(benchmark_record(result.machine, _command(args), figures), indent=1))
    if args.check or not args.json:
        print("\n".join(_sections(result, verdicts, args.json)), file=sys.stderr if args.json else sys.stdout)
    return exit_status(verdicts) if args.check else 0


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table, and why a bar is out of reach."""
    from safelight.pipeline.benchmark.bars import VERDICT_HEADER, reasons

    table = format_table(VERDICT_HEADER, [verdict.cells for verdict in verdicts])
    return "\n\n".join([table, *reasons(verdicts)])


def _refuse_flags_of_the_comparison(args: argparse.Namespace) -> None:
    for name in OF_COMPARISON:
        if getattr(args, name) not in (None, False):
            raise UserError(f"{_flag(name)} has no effect with --random-weights; leave it out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise UserError(f"--size must be WIDTHxHEIGHT, got {text!r}")
    return int(match[1]), int(match[2])


def _read_in_flight(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= MAX_IN_FLIGHT for word in words):
        raise UserError(
            f"--in-flight must be numbers from 1 to {MAX_IN_FLIGHT} with commas between, got {text!r}"
        )
    return tuple(dict.fromkeys(map(int, words)))


def _command(args: argparse.Namespace) -> str:
    """The command that measures the same again; flags of the output are left out."""
    words = ["safelight", "bench", "--random-weights", args.random_weights]
    for name in (*OF_RANDOM_WEIGHTS, "quantization"):
        if (value := getattr(args, name)) is not None:
            words += [_flag(name), str(value)]
    words += ["--no-compile"] if args.no_compile else []
    return shlex.join(words)


def _sections(result: RandomWeightsResult, verdicts: Sequence[Verdict], only_verdicts: bool) -> list[str]:
    table = verdict_table(verdicts) if verdicts else "no run has one image in flight"
    return ["", table] if only_verdicts else [f"{_as_text(result)}\n", f"{table}\n", NOTE]


def _as_text(result: RandomWeightsResult) -> str:
    spec = result.spec
    width, height = spec.size
    heading = (
        f"{result.model} with random weights on {result.device}, {result.dtype}, "
        f"quantization {result.quantization}",
        f"{width}x{height}, {spec.num_steps} steps of {spec.solver} at guidance {spec.guidance_scale:g}: "
        f"{result.flops_per_image / 1e12:.4g} TFLOP an image, decoding included",
        f"best matrix product: {result.peak_flops / 1e12:.4g} TFLOPS",
    )
    rows = [
        (
            run.mode,
            str(run.in_flight),
            f"{run.latency_s:.3f}",
            f"{run.images_per_hour:.0f}",
            f"{100 * run.mfu:.1f} %",
            f"{run.denoise_s:.3f}",
            f"{run.decode_s:.3f}",
            f"{run.peak_memory_bytes / 1e9:.2f}",
            f"{run.warm_up_s:.1f}",
        )
        for run in result.runs
    ]
    expected = result.expected
    predicted = (
        "predicted", "1", f"{expected.latency_s:.3f}", f"{expected.images_per_hour:.0f}",
        f"{100 * expected.mfu * expected.peak_flops / result.peak_flops:.1f} %", "", "", "", "",
    )  # fmt: skip
    by = (
        f"predicted by `safelight plan`: {expected.by}, {100 * expected.mfu:g} % of "
        f"{expected.peak_flops / 1e12:.4g} TFLOPS"
    )
    return "\n\n".join(["\n".join(heading), format_table(RUN_HEADER, [*rows, predicted]), by])
