"""Fuzzes the HTTP interface: `python -m tests.fuzz [--examples N] [--path P] [--seed N]`.

Prints how many requests were answered with which status, and what no check may find. The exit status is 1 if
there is such a finding.
"""

import argparse
import os
import sys
import tempfile

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="to each route; default %(default)s")
    parser.add_argument("--path", help="routes of this path only")
    parser.add_argument("--seed", type=int, default=SEED, help="default %(default)s")
    args = parser.parse_args()
    report = fuzz(args.examples, args.path, args.seed)
    console = Console(width=110, soft_wrap=True)
    table = Table("route", "answers")
    for operation in sorted({operation for operation, _ in report.answers}):
        counts = [(status, count) for (name, status), count in report.answers.items() if name == operation]
        table.add_row(operation, ", ".join(f"{status}: {count}" for status, count in sorted(counts)))
    console.print(table)
    for finding in report.findings:
        parts = (f"{finding.check}: {finding.operation}", finding.message, finding.request[:1000])
        console.print(escape("\n".join((*parts, finding.answer, ""))))
    for error in report.errors:
        console.print(escape(f"schemathesis: {error}"))
    console.print(dict(sorted(report.cases.items())), dict(sorted(report.statuses.items())))
    console.print(
        f"{report.num_cases} requests in {report.seconds:.0f} s, {len(report.findings)} findings, "
        f"{len(report.errors)} errors"
    )
    return int(bool(report.findings or report.errors))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="safelight-fuzz-") as folder:
        os.environ["XDG_DATA_HOME"] = folder  # where images are stored that are answered as links
        from tests.fuzz.run import EXAMPLES, SEED, fuzz

        sys.exit(main())
