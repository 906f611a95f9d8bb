"""The fastest matrix product that a machine was seen to do: what the share of its peak (MFU) is a share of."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

# (rows, inputs, outputs): the shapes of this project's networks at full batches, and larger ones that suit processors and GPUs
SHAPES = (
    (1024, 256, 1024),
    (1024, 1024, 256),
    (2048, 256, 1024),
    (2048, 1152, 4608),
    (4096, 1152, 4608),
    (4096, 4096, 4096),
)
SECONDS_EACH = 0.6
QUICK = (
    (1024, 256, 1024),
    (2048, 1152, 4608),
)  # of these, the ones that take less than a second together at a service's start
QUICK_SECONDS = 0.1


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of `SHAPES`, by the median of its runs."""
    return max(_rate(shape, device, dtype, SECONDS_EACH) for shape in SHAPES)


def quick_gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The same of two of the shapes, in less than a second."""
    return max(_rate(shape, device, dtype, QUICK_SECONDS) for shape in QUICK)


def _rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, budget: float) -> float:
    rows, inputs, outputs = shape
    x, weight = (
        torch.randn(rows, inputs, device=device, dtype=dtype),
        torch.randn(outputs, inputs, device=device, dtype=dtype),
    )
    return 2 * rows * inputs * outputs / median_seconds(lambda: F.linear(x, weight), device, budget)


def median_seconds(
    compute: Callable[[], object], device: torch.device, budget: float, at_least: int = 5
) -> float:
    """The median time of `compute` over about `budget` seconds, after two runs that are not counted."""
    times: list[float] = []
    ends = time.perf_counter() + budget
    while len(times) < at_least + 2 or time.perf_counter() < ends:
        started = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
