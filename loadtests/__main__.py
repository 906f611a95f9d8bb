"""`python -m loadtests`: a load test of five minutes against a service, its report, and an exit status that says whether targets are met.

Without `--url` a service is started for it. Loads, one after another: the mix one request at a time; more than can be served; a
steady share of what was served; users of locust's who come as a spike.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import httpx
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtests import plots
from loadtests.accounts import compare, read_books, read_settled_books
from loadtests.figures import Phase, Thresholds, Verdict, judge
from loadtests.replay import replay, was_late
from loadtests.report import write_report
from loadtests.service import CannotStart, service
from loadtests.traces import Arrival, InvalidTrace, poisson, read_trace
from loadtests.watch import Watched, watching

NUM_ALONE = 16
BURST = 24  # requests at once, from which the capacity is guessed before it is measured
OVERLOAD = 1.5
BENCH_REQUESTS = 120
SEED = 20_261
FAILED, NOTHING = 1, 2


def main() -> int:
    args = _parser().parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recorded = read_trace(Path(args.trace), args.speed) if args.trace else None
        bench = None if args.url or args.trace or args.no_bench else _bench(args.model, folder)
        with nullcontext(args.url) if args.url else service(args.model, folder / "service.log") as url:
            return _run(url, args, folder, recorded, bench)
    except (CannotStart, InvalidTrace, OSError, httpx.HTTPError) as error:
        sys.stderr.write(f"loadtests: {error}\n")
        return NOTHING


def _run(
    url: str, args: argparse.Namespace, folder: Path, recorded: list[Arrival] | None, bench: float | None
) -> int:
    key = os.environ.get("SAFELIGHT_ADMIN_KEY")
    before = read_books(url, key)
    model = httpx.get(f"{url}/v1/models", timeout=10.0).raise_for_status().json()["data"][0]
    sizes = model["sizes"]
    runs: list[tuple[Phase, Watched]] = []

    def go(name: str, arrivals: Sequence[Arrival], rate: float) -> Phase:
        phase, watched = asyncio.run(_phase(url, name, arrivals, 3600.0 * rate))
        runs.append((phase, watched))
        return phase

    if recorded is not None:
        alone, saturated, steady = (
            None,
            None,
            go("recorded", recorded, len(recorded) / max(recorded[-1].at, 1e-9)),
        )
    else:
        bodies = [each.body for each in poisson(1.0, 4.0 * NUM_ALONE, sizes, SEED)]
        alone = _one_by_one(url, [Arrival(0.0, body) for body in bodies[:NUM_ALONE]])
        burst = go("burst", [Arrival(0.0, body) for body in bodies[:BURST]], 0.0)
        capacity = burst.images_per_hour / 3600.0
        saturated = go(
            "saturated", poisson(OVERLOAD * capacity, args.seconds / 3, sizes, SEED + 1), OVERLOAD * capacity
        )
        rate = args.load * saturated.images_per_hour / 3600.0
        steady = go(f"at {args.load:.0%}", poisson(rate, args.seconds / 2, sizes, SEED + 2), rate)
    after = read_settled_books(url, key)
    is_spike_good = args.trace is not None or _locust(url, args.seconds / 4, folder, sizes)
    thresholds = Thresholds(
        args.min_images_per_hour,
        args.max_p95,
        args.max_p95_times_alone,
        args.max_failures,
        args.min_share_of_bench,
    )
    phases = [phase for phase, _ in runs]
    verdicts = judge(
        thresholds,
        alone or steady,
        saturated or steady,
        steady,
        [p for p in phases if p not in (saturated, steady)],
        bench,
    )
    if before is None or after is None:
        verdicts += [] if args.url else [Verdict("the service's account", "answers", "does not", False)]
    else:
        verdicts += compare(
            before, after, phases if alone is None else [alone, *phases], steady, args.max_account_difference
        )
    facts = {
        "model": model["id"],
        "images an hour": f"{(saturated or steady).images_per_hour:.0f}",
        "p95 at the steady load": f"{steady.percentile(95):.2f} s",
        "locust's spike": "held" if is_spike_good else "**failed**",
        "the client kept its times": "no: its own lateness is in the latencies"
        if was_late(steady.results)
        else "yes",
        "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": f"{os.cpu_count()} processors",
    }
    images = {
        "latency": plots.latency_cdf([phase for phase in (alone, *phases) if phase is not None]),
        "throughput": plots.throughput(runs),
        "rows-a-tick": plots.rows_per_tick(runs),
        "utilisation": plots.utilisation(runs),
    }
    write_report(
        folder,
        f"Load test of {model['id']}",
        facts,
        [phase for phase in (alone, *phases) if phase is not None],
        verdicts,
        images,
    )
    for verdict in verdicts:
        print(f"{'met' if verdict.is_met else 'NOT MET':8} {verdict.name}: {verdict.got} ({verdict.wanted})")
    print(f"report: {folder / 'report.html'}, {folder / 'report.md'}")
    return 0 if is_spike_good and all(verdict.is_met for verdict in verdicts) else FAILED


async def _phase(
    url: str, name: str, arrivals: Sequence[Arrival], offered_per_hour: float
) -> tuple[Phase, Watched]:
    with Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    ) as bar:
        task = bar.add_task(name, total=len(arrivals))
        async with watching(url) as watched:
            results = await replay(url, arrivals, progress=lambda done: bar.update(task, completed=done))
    return Phase(name, offered_per_hour, tuple(results)), watched


def _one_by_one(url: str, arrivals: Sequence[Arrival]) -> Phase:
    """Each sent when the one before is answered: what a request takes by itself."""
    results, started = [], 0.0
    with Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    ) as bar:
        for arrival in bar.track(arrivals, description="one by one"):
            (result,) = asyncio.run(replay(url, [arrival]))
            results.append(replace(result, due=started, sent=started, done=started + result.latency))
            started += result.latency
    return Phase("one by one", 3600.0 * len(results) / started, tuple(results))


def _bench(model: str, folder: Path) -> float:
    """Images an hour of the engine alone on the same mix, saturated; about a minute."""
    print("the engine alone, without HTTP: a minute or so")
    command = [
        str(Path(sys.executable).with_name("safelight")),
        "bench",
        "--engine-only",
        "--json",
        "--model",
        model,
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [*command, "--requests", str(BENCH_REQUESTS)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise CannotStart(f"safelight bench ended with status {done.returncode}")
    (folder / "bench.json").write_text(done.stdout)
    return float(json.loads(done.stdout)["mixed"]["ours"]["images_per_hour"])


def _locust(url: str, seconds: float, folder: Path, sizes: Sequence[str]) -> bool:
    """Users who come all at once and go again; False if any answer was wrong."""
    command = [
        str(Path(sys.executable).with_name("locust")),
        "-f",
        "loadtests/users.py",
        "--headless",
        "--host",
        url,
    ]
    command += [
        "--html",
        str(folder / "locust.html"),
        "--json-file",
        str(folder / "locust"),
        "--only-summary",
    ]
    environment = os.environ | {"SHAPE": "spike", "SECONDS": str(seconds), "SIZES": ",".join(sizes)}
    print(f"spike: locust's users for {seconds:.0f} s")
    return (
        subprocess.run(
            command,
            env=environment,
            stdout=(folder / "locust.log").open("w"),
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
        == 0
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests", description="A load test against a service, and its report."
    )
    parser.add_argument("--url", help="a running service; default: one is started")
    parser.add_argument("--model", default="emoji-128", help="of the service that is started")
    parser.add_argument("--seconds", type=float, default=150.0, help="for the loads together")
    parser.add_argument(
        "--load", type=float, default=0.6, help="the steady load, as a share of what was served saturated"
    )
    parser.add_argument(
        "--trace", help='replay these arrivals instead: lines of JSON, {"at": seconds, "body": {...}}'
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast to replay --trace")
    parser.add_argument("--output", default="build/load", help="where the report goes")
    parser.add_argument("--min-images-per-hour", type=float, default=1000.0)
    parser.add_argument("--max-p95", type=float, default=5.0, metavar="SECONDS", help="at the steady load")
    parser.add_argument("--max-p95-times-alone", type=float, default=3.0, metavar="TIMES")
    parser.add_argument("--max-failures", type=int, default=0)
    parser.add_argument(
        "--min-share-of-bench",
        type=float,
        default=0.85,
        help="of `safelight bench --engine-only`, run before the service starts",
    )
    parser.add_argument("--no-bench", action="store_true", help="without it; so it is with --url or --trace")
    parser.add_argument(
        "--max-account-difference",
        type=float,
        default=0.02,
        help="between /v1/accounting and what the clients saw",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
