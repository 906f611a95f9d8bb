"""`safelight simulate --compare`: policies under deadlines, a greedy caller beside others, orders."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safelight.pipeline.capacity.comparison import deadlines, greedy, order
from safelight.pipeline.capacity.comparison.policies import POLICIES
from safelight.pipeline.capacity.comparison.traffic import TRAFFIC, Traffic
from safelight.service.cli import UserError
from safelight.service.cli.progress import counter
from safelight.service.cli.tables import format_table
from safelight.service.runtime.fast_imports import gc_frozen_imports

WHAT = ("deadlines", "selections", "shares", "order")
MAX_DEVICES = 10_000


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """A table of a comparison: what it shows, and its rows one by one as they are simulated."""

    columns: Sequence[str]
    rows: Iterator[list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the comparisons."""
    group = parser.add_argument_group(
        "comparisons",
        "instead of a fleet; deterministic, on one cost curve, with the service's own batching",
    )
    group.add_argument(
        "--compare",
        choices=WHAT,
        help="deadlines: policies under requests with deadlines; selections: what the coarse selection of "
        "many devices changes there; shares: what a greedy caller does to others; order: orders of samples "
        "without deadlines",
    )
    group.add_argument(
        "--devices",
        type=int,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="numbers of devices of --compare deadlines; 1000 takes about a minute for each row; default 1 8",
    )
    group.add_argument(
        "--traffic",
        nargs="+",
        metavar="T",
        help="traffic of --compare deadlines: "
        f"{', '.join(traffic.name for traffic in TRAFFIC)}; default: all",
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables, or with `--json` their record for docs/data."""
    tables = _tables(args)
    rows = [list(table.rows) for table in tables]
    if args.json:
        print(json.dumps(_record(args, [table.columns for table in tables], rows), indent=1))
        return 0
    texts = (format_table(table.columns, part) for table, part in zip(tables, rows, strict=True))
    print("\n\n".join(texts))
    return 0


def _tables(args: argparse.Namespace) -> list[ComparisonTable]:
    if args.compare == "shares":
        return [
            ComparisonTable(greedy.COLUMNS, greedy.greedy_rows()),
            ComparisonTable(greedy.SHARE_COLUMNS, greedy.share_rows()),
        ]
    if args.compare == "order":
        return [ComparisonTable(order.COLUMNS, order.rows())]
    if args.compare == "selections":
        return [ComparisonTable(deadlines.STRIDE_COLUMNS, deadlines.stride_rows())]
    return [ComparisonTable(deadlines.COLUMNS, _deadline_rows(args.devices, _traffics(args)))]


def _traffics(args: argparse.Namespace) -> list[Traffic]:
    """The chosen traffics. Raises `UserError`."""
    for number in args.devices:
        if not 1 <= number <= MAX_DEVICES:
            raise UserError(f"--devices must be between 1 and {MAX_DEVICES}, got {number}")
    by_name = {traffic.name: traffic for traffic in TRAFFIC}
    names = args.traffic or list(by_name)
    for name in names:
        if name not in by_name:
            raise UserError(f"--traffic must be one of {', '.join(by_name)}, got {name!r}")
    return [by_name[name] for name in names]


def _deadline_rows(devices: Sequence[int], traffics: Sequence[Traffic]) -> Iterator[list[str]]:
    with counter("simulating", len(devices) * len(traffics) * len(POLICIES)) as show:
        for count, row in enumerate(deadlines.rows(devices, traffics), 1):
            show(count)
            yield row


def _record(
    args: argparse.Namespace, columns: Sequence[Sequence[str]], rows: Sequence[Sequence[Sequence[str]]]
) -> dict[str, object]:
    with gc_frozen_imports():
        from safelight.pipeline.benchmark.machine import SIMULATION
        from safelight.pipeline.benchmark.record import benchmark_record
    command = f"safelight simulate --compare {args.compare}"
    if args.compare == "deadlines":
        command += f" --devices {' '.join(map(str, args.devices))}"
        command += f" --traffic {' '.join(args.traffic)}" if args.traffic else ""
    tables = [{"columns": head, "rows": body} for head, body in zip(columns, rows, strict=True)]
    return benchmark_record(SIMULATION, command, {"tables": tables})
