"""Runs every mutant in this folder's lists against its tests: `python -m tests.mutants`, or `make mutants`.

A mutant is a change that a reviewer would fear: a swapped argument, a dropped term, a wrong key, a missing
release. Generators of mutants do not make such changes, by their code: mutmut 3 leaves constants, defaults,
tables and every decorated function (properties, cached functions, context managers) alone. cosmic-ray changes
one node of the syntax tree at a time, writes into the working tree and starts Python anew for each mutant,
which takes longer here than most tests. Neither takes a list. So this is a list and a small runner.

Each mutant's tests run in a child of a process that has imported the large libraries, on a copy of the tree.
Results are kept in build/mutants; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys

from tests.mutants.catalogue import ROOT, load_mutants
from tests.mutants.results import Results
from tests.mutants.runner import Runner
from tests.mutants.summary import MIN_SCORE, Outcome, faults, summary

FOLDER = ROOT / "build" / "mutants"


def main() -> int:
    args = _parse_args()
    mutants = [mutant for mutant in load_mutants() if fnmatch.fnmatch(mutant.title, f"*{args.only}*")]
    if not mutants:
        print(f"no mutant matches {args.only!r}", file=sys.stderr)
        return 2
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.default_int_handler)
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(FOLDER / "results.json", is_fresh=args.fresh)
    try:
        with Runner(results, args.jobs, FOLDER / "logs") as runner:
            outcomes = runner.run(mutants)
    except KeyboardInterrupt:
        print("interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    print(summary(outcomes))
    return _exit_status(outcomes)


def _exit_status(outcomes: list[Outcome]) -> int:
    messages = faults(outcomes)
    for message in messages:
        print(message, file=sys.stderr)
    return 1 if messages else 0


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--only", default="", metavar="PATTERN", help="only mutants whose list/name contains PATTERN")
    flag("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time; default %(default)s")
    flag("--fresh", action="store_true", help="run all again, also those with a result")
    parser.epilog = f"Exit status 1: under {MIN_SCORE:.0%} caught, or a mutant is not as its list says."
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
