"""Simulates what docs/capacity.md shows, and prints the record for docs/data/simulated.

python -m tests.bench.simulations batching > docs/data/simulated/batching.json
python -m tests.bench.simulations fleet > docs/data/simulated/fleet.json
"""

import argparse
import io
import json
import random
import statistics
import sys
from contextlib import redirect_stdout
from functools import partial

from safelight.pipeline.benchmark.machine import SIMULATION
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.capacity.queueing import MDcQueue
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload
from safelight.service import cli

IMAGE_SECONDS = (1.5, 1.7, 2.0, 2.5)
ROWS, TICKS, REQUESTS, REQUESTS_PER_HOUR = 2, 10, 6000, 1000.0
MAX_TOKENS = 1 << 20  # no limit
SIMULATE = "simulate --gpus 10000 --rate 8000000 --grow --mean-life-hours 1000 --price-per-hour 2"
ABOUT_BATCHING = (
    f"The engine's batching, simulated on a cost curve proportional to rows with {REQUESTS:,} requests at "
    f"{REQUESTS_PER_HOUR:g} an hour; mean and 95th percentile in seconds."
)


def main(argv: list[str] | None = None) -> int:
    """Print the record of one simulation as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("batching", "fleet"))
    name = parser.parse_args(argv).name
    record = batching_record() if name == "batching" else fleet_record()
    print(json.dumps(record, indent=1))
    return 0


def batching_record() -> dict[str, object]:
    """Latencies beside the queue M/D/1, where a batch costs as much as its images one by one."""
    rows = [batching_row(seconds) for seconds in IMAGE_SECONDS]
    columns = ["seconds of an image alone", "M/D/1", "2 rows a tick", "16 rows a tick"]
    record = benchmark_record(
        SIMULATION,
        "python -m tests.bench.simulations batching",
        {"tables": [{"columns": columns, "rows": rows}]},
    )
    return {"title": "The engine's batching beside M/D/1", "about": ABOUT_BATCHING} | record


def batching_row(image_seconds: float) -> list[str]:
    """Mean and 95th percentile of the latency in seconds: by the queue, with 2 and with 16 rows a tick."""
    queue = MDcQueue(REQUESTS_PER_HOUR / 3600, image_seconds)
    exact = (image_seconds + queue.mean_wait, image_seconds + queue.wait_quantile(0.95))
    simulated = [batched_latency(image_seconds, max_rows) for max_rows in (2, 16)]
    return [f"{image_seconds:g}", *(f"{mean:.1f}, {p95:.1f}" for mean, p95 in (exact, *simulated))]


def batched_latency(image_seconds: float, max_rows: int) -> tuple[float, float]:
    """Mean and 95th percentile of the latency in seconds by the engine's batching."""
    curve = CostCurve((1.0,), (image_seconds / TICKS,))
    rng, arrived, samples = random.Random(0), 0.0, list[SimulatedSample]()
    for _ in range(REQUESTS):
        arrived += rng.expovariate(REQUESTS_PER_HOUR / 3600)
        workload = make_workload([ROWS] * TICKS, [1.0] * TICKS, 1, curve, arrived)
        samples.append(SimulatedSample(workload))
    limits = Limits(max_rows, MAX_TOKENS)
    finished = simulate(samples, partial(select_next_batch, limits=limits, curve=curve), curve)
    latencies = [sample.latency for sample in finished]
    return statistics.mean(latencies), statistics.quantiles(latencies, n=20)[-1]


def fleet_record() -> dict[str, object]:
    """The fleets of docs/capacity.md, as `safelight simulate --json` reports them."""
    output = io.StringIO()
    with redirect_stdout(output):
        cli.main([*SIMULATE.split(), "--json"])
    record = benchmark_record(SIMULATION, f"safelight {SIMULATE}", json.loads(output.getvalue()))
    return {"title": "Fleets"} | record


if __name__ == "__main__":
    sys.exit(main())
