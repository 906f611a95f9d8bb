"""Measures what threads that spin while they wait cost, with free cores and with a busy neighbour.

    python -m tests.bench.waiting_threads [--rounds N] [--json]

In turns, a process for each setting of OpenMP draws images one at a time and eight at a time, without
and with another process that keeps one core busy. Nothing else should run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import track

from safelight.pipeline.benchmark.machine import identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.service.runtime.environment import SPIN_COUNT

SETTINGS = {
    "as OpenMP does by default": {},
    "`OMP_WAIT_POLICY=passive`": {"OMP_WAIT_POLICY": "passive"},
    f"`GOMP_SPINCOUNT={SPIN_COUNT}`, as `safelight` sets it": {"GOMP_SPINCOUNT": SPIN_COUNT},
}
IN_FLIGHT = 8
# Draws one image three times and eight at once, after a warm-up; prints the median seconds of both.
PROGRAM = f"""
import statistics, time
import safelight

def seconds(n):
    start = time.perf_counter()
    pipeline.generate("a red apple", n=n)
    return time.perf_counter() - start

with safelight.Pipeline() as pipeline:
    seconds(1)
    print(statistics.median(seconds(1) for _ in range(3)), seconds({IN_FLIGHT}))
"""
BUSY = "while True: pass"


class Times(NamedTuple):
    """Seconds of one image alone, and of `IN_FLIGHT` at once."""

    one: float
    many: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="the record on stdout, for docs/data")
    args = parser.parse_args()
    runs: dict[tuple[str, bool], list[Times]] = {}
    for _ in track(range(args.rounds), "rounds", disable=not sys.stderr.isatty()):
        for name, variables in SETTINGS.items():
            for is_busy in (False, True):
                with busy_neighbour(is_busy):
                    runs.setdefault((name, is_busy), []).append(measure(variables))
    figures = {"tables": [{"columns": COLUMNS, "rows": [row(name, runs) for name in SETTINGS]}]}
    record = benchmark_record(identify_machine(), "python -m tests.bench.waiting_threads", figures)
    print(json.dumps(record if args.json else figures, indent=1, ensure_ascii=False))
    return 0


COLUMNS = [
    "threads wait",
    "an image alone, s",
    "with a busy neighbour, s",
    f"{IN_FLIGHT} at once, images/h",
    "with a busy neighbour, images/h",
]


def row(name: str, runs: dict[tuple[str, bool], list[Times]]) -> list[str]:
    """The medians over all rounds."""
    ones = [statistics.median(times.one for times in runs[name, is_busy]) for is_busy in (False, True)]
    rates = [
        IN_FLIGHT * 3600.0 / statistics.median(times.many for times in runs[name, is_busy])
        for is_busy in (False, True)
    ]
    return [name, *(f"{seconds:.2f}" for seconds in ones), *(f"{rate:,.0f}" for rate in rates)]


def measure(variables: dict[str, str]) -> Times:
    """What a process with these variables measures."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    one, many = map(float, done.stdout.split())
    return Times(one, many)


@contextmanager
def busy_neighbour(is_busy: bool) -> Iterator[None]:
    """Another process that always runs on some core, if `is_busy`."""
    if not is_busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
