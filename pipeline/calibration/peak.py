"""The peak throughput of a machine, by matrix products: MFU is a share of this figure."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Shape = tuple[int, int, int]

# (rows, inputs, outputs): shapes of this project's networks at full batches, and larger ones that suit
# processors and GPUs
SHAPES = (
    (1024, 256, 1024),
    (1024, 1024, 256),
    (2048, 256, 1024),
    (2048, 1152, 4608),
    (4096, 1152, 4608),
    (4096, 4096, 4096),
)
SECONDS_EACH = 0.6
# Measured when a service starts: under a second on a fast processor, some seconds on a slow one.
QUICK = ((1024, 256, 1024), (2048, 1152, 4608))
QUICK_SECONDS = 0.1
# A GPU is filled by larger products only: those above would make its peak, and so MFU, look too good.
GPU_SHAPES = ((8192, 8192, 8192), (16384, 4096, 8192))


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest of `SHAPES`, each by the median of its runs."""
    return max(_rate(shape, device, dtype, SECONDS_EACH) for shape in shapes_for(device, SHAPES))


def quick_gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest of a few shapes."""
    return max(_rate(shape, device, dtype, QUICK_SECONDS) for shape in shapes_for(device, QUICK))


def shapes_for(device: torch.device, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """`shapes`, and on a GPU those that fill it."""
    return (*shapes, *(GPU_SHAPES if device.type == "cuda" else ()))


def _rate(shape: Shape, device: torch.device, dtype: torch.dtype, budget: float) -> float:
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    return 2 * rows * inputs * outputs / median_seconds(lambda: F.linear(x, weight), device, budget)


def median_seconds(
    compute: Callable[[], object], device: torch.device, budget: float, min_runs: int = 5
) -> float:
    """The median time of `compute`, repeated for about `budget` seconds, at least `min_runs` times.

    The first two runs warm up and do not count.
    """
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < min_runs + 2 or time.perf_counter() < deadline:
        started = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
