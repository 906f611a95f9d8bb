"""The memory of a GPU's ticks, measured at two sizes, and the tokens that fit beside the weights."""

from collections.abc import Callable
from dataclasses import replace

import torch

from safelight.pipeline.assembly.device import free_bytes
from safelight.pipeline.calibration.cost_curve import run_rows
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.scheduling.batcher import Limits

# The share of the free memory that ticks may take; the rest is for texts, decoding and fragmentation.
USABLE = 0.8
ROWS = (4, 8)

# Runs a computation; returns the most bytes that it took at one time beyond those that were taken before.
MeasurePeak = Callable[[Callable[[], object]], int]


def memory_limits(engine: Engine, model: ModelInfo) -> Limits:
    """`limits_within` on a GPU; a processor's memory is not measured, and leaves the limits as they are."""
    device = engine.device
    if device.type != "cuda":
        return engine.limits
    return limits_within(engine, model, cuda_peak(device), free_bytes(device) or 0)


def limits_within(engine: Engine, model: ModelInfo, measure_peak: MeasurePeak, free: int) -> Limits:
    """The engine's limits, with fewer tokens if a tick of all would take more than the memory.

    A tick's memory grows in proportion to its tokens, by a rate that two ticks of the native size show. One
    image always fits by these limits: an engine that has no room even for that says so when it draws it.

    Args:
        engine: It must be empty, and is empty again afterwards.
        model: The engine's.
        measure_peak: Measures memory on the engine's device.
        free: Bytes that are free on the device.
    """
    limits = engine.limits
    if limits.max_rows < ROWS[1]:
        return limits
    num_bytes, tokens = dict[int, int](), dict[int, int]()
    run_rows(engine, model, ROWS[0])  # what is allocated once is not a tick's
    for rows in ROWS:

        def tick(rows: int = rows) -> None:
            tokens[rows] = run_rows(engine, model, rows)

        num_bytes[rows] = measure_peak(tick)
    few, many = (tokens[rows] for rows in ROWS)
    few_bytes, many_bytes = (num_bytes[rows] for rows in ROWS)
    if few >= many:  # the device had no room for the larger tick, and lowered the limits itself
        return engine.limits
    bytes_per_token = max(1.0, (many_bytes - few_bytes) / (many - few))
    fixed_bytes = max(0.0, few_bytes - few * bytes_per_token)
    fitting = int((USABLE * free - fixed_bytes) / bytes_per_token)
    return replace(limits, max_tokens=min(limits.max_tokens, max(few // 2, fitting)))


def cuda_peak(device: torch.device) -> MeasurePeak:
    """Measures by the counters of torch's allocator."""

    def measure(compute: Callable[[], object]) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    return measure
