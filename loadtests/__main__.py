"""`python -m loadtests`: a five-minute load test of a service, with a report and a verdict on each target.

Without `--url` it starts a service. The exit status is 1 if a target was missed that this machine can reach,
and 2 if nothing could be measured.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryFile

import httpx2

from loadtests import plots
from loadtests.accounting import compare
from loadtests.measure import Load, Measurement, measure
from loadtests.replay import was_behind_schedule
from loadtests.report import phases_table, targets_table, write_record, write_report
from loadtests.service import CannotStart, Service, keep_loopback_direct, service
from loadtests.subprocesses import bench_engine, run_spike
from loadtests.traces import InvalidTrace, ScheduledRequest, read_trace
from loadtests.verdicts import EngineAlone, Thresholds, Verdict, judge

MISSED, NOT_MEASURED = 1, 2


def main() -> int:
    """Run the load test that the command line describes; returns the exit status."""
    args = _parser().parse_args()
    keep_loopback_direct()
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # whether the report can be written, before an hour of load
        recorded = read_trace(Path(args.trace), args.speed) if args.trace else None
        is_bench_skipped = args.url or args.trace or args.no_bench
        engine_images_per_hour = None if is_bench_skipped else bench_engine(args.model, folder)
        with (
            nullcontext(Service(args.url))
            if args.url
            else service(args.model, folder / "service.log") as running
        ):
            return _run(running, args, folder, recorded, engine_images_per_hour)
    except (CannotStart, InvalidTrace, OSError, httpx2.HTTPError) as error:
        sys.stderr.write(f"loadtests: {error}\n")
        return NOT_MEASURED


def _run(
    running: Service,
    args: argparse.Namespace,
    folder: Path,
    recorded: Sequence[ScheduledRequest] | None,
    engine_images_per_hour: float | None,
) -> int:
    """Run the load test and write its report.

    Args:
        running: the service.
        args: the command's flags.
        folder: where the report goes.
        recorded: a trace to replay in place of the load phases, if any.
        engine_images_per_hour: throughput of the engine alone, if it was measured.

    Returns:
        The exit status.
    """
    load = Load(args.seconds, args.load, args.one_by_one, args.burst)
    measurement = measure(running, recorded, load)
    if recorded is not None:
        spike = "not run"
    else:
        spike = "passed" if run_spike(running.url, args.seconds / 4, folder, measurement.sizes) else "failed"
    verdicts = _judge(args, measurement, engine_images_per_hour)
    _report(folder, measurement, verdicts, spike)
    if engine_images_per_hour is not None:
        write_record(folder, " ".join(("python -m loadtests", *sys.argv[1:])), measurement.phases, verdicts)
    return 0 if spike != "failed" and all(verdict.is_met is not False for verdict in verdicts) else MISSED


def _judge(
    args: argparse.Namespace, measurement: Measurement, engine_images_per_hour: float | None
) -> list[Verdict]:
    steady = measurement.steady
    saturated = measurement.saturated or steady
    thresholds = Thresholds(
        min_images_per_hour=args.min_images_per_hour,
        max_p95_s=args.max_p95,
        max_p95_times_alone=args.max_p95_times_alone,
        max_failures=args.max_failures,
        min_share_of_bench=args.min_share_of_bench,
    )
    engine = None
    if engine_images_per_hour and measurement.core_seconds:
        engine = EngineAlone(engine_images_per_hour, measurement.core_seconds)
    other_phases = [phase for phase, _ in measurement.replayed if phase not in (saturated, steady)]
    verdicts = judge(thresholds, measurement.alone or steady, saturated, steady, other_phases, engine)
    before, after = measurement.before, measurement.after
    if before is not None and after is not None:
        return verdicts + compare(before, after, measurement.phases, steady, args.max_account_difference)
    if args.url:  # a service that was not started here may not show its accounting
        return verdicts
    return [*verdicts, Verdict("/v1/accounting", "answers", "does not answer", False)]


def _report(folder: Path, measurement: Measurement, verdicts: Sequence[Verdict], spike: str) -> None:
    """Write the reports into `folder`, and print their tables. `spike` is the result of locust's phase."""
    phases, replayed, steady = measurement.phases, measurement.replayed, measurement.steady
    is_behind = was_behind_schedule(steady.results)
    facts = {
        "model": measurement.model,
        "images an hour": f"{(measurement.saturated or steady).images_per_hour:.0f}",
        "p95 at the steady load": f"{steady.percentile(95):.2f} s",
        "locust's spike": f"**{spike}**" if spike == "failed" else spike,
        "the client kept its times": "no: latencies include the client's own delay" if is_behind else "yes",
        "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": f"{os.cpu_count()} processors",
    }
    images = {
        "latency": plots.latency_cdf(phases),
        "throughput": plots.throughput(replayed),
        "rows-a-tick": plots.rows_per_tick(replayed),
        "utilisation": plots.utilisation(replayed),
    }
    write_report(folder, f"Load test of {measurement.model}", facts, phases, verdicts, images)
    print(phases_table(phases).as_text(), targets_table(verdicts).as_text(), sep="\n\n")
    print(f"\nspike phase (locust): {spike}")
    print(f"report: {folder / 'report.html'}, {folder / 'report.md'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests", description="Load-test a service over HTTP and write a report."
    )
    parser.add_argument("--url", help="a running service; default: start one")
    parser.add_argument("--model", default="emoji-128", help="model of the service that is started")
    parser.add_argument(
        "--seconds", type=float, default=Load.seconds, help="duration of the load phases together"
    )
    parser.add_argument(
        "--load",
        type=float,
        default=Load.steady_share,
        help="the steady load, as a share of the saturated throughput",
    )
    parser.add_argument(
        "--one-by-one", type=int, default=Load.num_alone, help="number of requests sent one at a time"
    )
    parser.add_argument("--burst", type=int, default=Load.burst, help="number of requests sent at once")
    parser.add_argument(
        "--trace", help='replay these requests instead: lines of JSON, {"at": seconds, "body": {...}}'
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast to replay --trace")
    parser.add_argument("--output", default="build/load", help="folder for the report")
    _add_thresholds(parser)
    return parser


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-images-per-hour", type=float, default=1000.0, help="saturated throughput")
    parser.add_argument(
        "--max-p95", type=float, default=5.0, metavar="SECONDS", help="latency at the steady load"
    )
    parser.add_argument(
        "--max-p95-times-alone",
        type=float,
        default=3.0,
        metavar="TIMES",
        help="the same, as a multiple of the p95 of the mix one request at a time",
    )
    parser.add_argument("--max-failures", type=int, default=0, help="number of failed or refused requests")
    parser.add_argument(
        "--min-share-of-bench",
        type=float,
        default=0.85,
        help="saturated throughput as a share of what `safelight bench --engine-only`, run before the "
        "service, reaches beside the other processes",
    )
    parser.add_argument(
        "--no-bench", action="store_true", help="skip that run; --url and --trace skip it too"
    )
    parser.add_argument(
        "--max-account-difference",
        type=float,
        default=0.02,
        help="relative difference between /v1/accounting and what the clients saw",
    )


if __name__ == "__main__":
    sys.exit(main())
