"""Times the fused update of 64 samples against one pass over the memory that it must read and write.

    python -m tests.bench.update [--json]

The exit status is 1 if the update takes longer than its bar allows.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from safelight.pipeline.benchmark.bars import UPDATE_BARS
from safelight.pipeline.benchmark.machine import Machine, identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.diffusion.solvers import READ, STATE
from safelight.pipeline.engine import batch
from tests.bench.verdicts import print_verdicts

SAMPLES, REPEATS = 64, 41
SHAPES = ((8, 16, 16), (16, 32, 32), (4, 128, 128))


def main() -> int:
    """Print the median ratio of update to memory pass, for latents of three sizes, and the verdicts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="the record on stdout, for docs/data; verdicts on stderr"
    )
    args = parser.parse_args()
    figures = {"update_over_pass": {str(shape): measure(shape) for shape in SHAPES}}
    machine = identify_machine()
    if args.json:
        print(json.dumps(benchmark_record(machine, "python -m tests.bench.update", figures), indent=1))
    return judged(figures, machine)


def measure(shape: tuple[int, int, int]) -> float:
    """The median ratio of an update of `SAMPLES` latents of this shape to a memory pass, timed in turns."""
    buffers = batch.UpdateBuffers(
        read=torch.randn(SAMPLES, len(READ), *shape),
        written=torch.empty(SAMPLES, len(STATE), *shape),
        update=torch.randn(SAMPLES, len(STATE), len(READ)),
    )
    out = torch.randn(SAMPLES, *shape)
    read, written = torch.randn(SAMPLES, len(READ), *shape), torch.empty(SAMPLES, len(STATE), *shape)
    sums = torch.empty(SAMPLES, 2, *shape)

    def update() -> None:
        batch.update(buffers, out)

    def memory_pass() -> None:
        """Seven tensors read, five written: a copy of five, and a sum that reads the other two."""
        written.copy_(read[:, :5])
        torch.sum(read[:, 5:], dim=1, out=sums[:, 0])

    return statistics.median(_seconds(update) / _seconds(memory_pass) for _ in range(REPEATS))


def judged(figures: dict[str, Any], machine: Machine) -> int:
    """Print the verdict on every bar, on stderr; the exit status."""
    return print_verdicts(UPDATE_BARS, figures, machine)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
