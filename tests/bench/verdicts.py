"""The table of bars at the end of a benchmark."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from safelight.pipeline.benchmark.bars import VERDICT_HEADER, Bar, Figures, exit_status, judge, reasons
from safelight.pipeline.benchmark.machine import Machine


def print_verdicts(bars: Iterable[Bar], figures: Figures, machine: Machine) -> int:
    """Print the verdict on every bar, on stderr.

    Returns:
        The exit status: 1 if a bar was missed that can be reached on this kind of machine.
    """
    verdicts = judge(bars, figures, machine.kind)
    table = Table(*VERDICT_HEADER)
    for verdict in verdicts:
        table.add_row(*verdict.cells)
    console = Console(stderr=True, width=110)
    console.print(table, *reasons(verdicts), sep="\n")
    return exit_status(verdicts)
