"""Times the fused update of 64 samples against one pass over the memory that it must read and write."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from safelight.pipeline.diffusion.solvers import READ, STATE
from safelight.pipeline.engine import batch

SAMPLES, REPEATS = 64, 41
SHAPES = ((8, 16, 16), (16, 32, 32), (4, 128, 128))


def main() -> None:
    """Print the median ratio of update to memory pass, for latents of three sizes."""
    for shape in SHAPES:
        buffers = batch.UpdateBuffers(
            read=torch.randn(SAMPLES, len(READ), *shape),
            written=torch.empty(SAMPLES, len(STATE), *shape),
            update=torch.randn(SAMPLES, len(STATE), len(READ)),
        )
        out = torch.randn(SAMPLES, *shape)
        read, written = torch.randn(SAMPLES, len(READ), *shape), torch.empty(SAMPLES, len(STATE), *shape)
        sums = torch.empty(SAMPLES, 2, *shape)

        def one_update(buffers: batch.UpdateBuffers = buffers, out: Tensor = out) -> None:
            batch.update(buffers, out)

        def one_pass(read: Tensor = read, written: Tensor = written, sums: Tensor = sums) -> None:
            """Seven tensors read, five written: a copy of five, and a sum that reads the other two."""
            written.copy_(read[:, :5])
            torch.sum(read[:, 5:], dim=1, out=sums[:, 0])

        ratios = [_seconds(one_update) / _seconds(one_pass) for _ in range(REPEATS)]
        ratio = statistics.median(ratios)
        print(f"update / one memory pass, {SAMPLES} samples of {shape}: median {ratio:.2f}")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
