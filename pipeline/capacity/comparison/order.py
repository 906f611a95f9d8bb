"""Orders of samples without deadlines, compared by the latency and slowdown of single requests.

Simulated on a cost curve, because policies differ by less than two runs in real time do.
"""

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS, ROWS, TOKENS
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import Queue, Rule, Samples, SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload

STEPS = (8, 20, 30, 40)
NUM_REQUESTS = 400
COLUMNS = ("requests/s", "policy", "latency mean, s", "latency p95, s", "slowdown p95", "slowdown max")
RATES = (4.0, 5.0, 5.5, 6.0)  # requests per second; this curve can serve 6.2


def fill_tick(
    key: Callable[[SimulatedSample, float], float], running: Samples, queue: Queue, time: float
) -> list[SimulatedSample]:
    """As many samples as fit a tick, in the order of `key`."""
    batch: list[SimulatedSample] = []
    for sample in sorted((*running, *queue), key=lambda sample: key(sample, time)):
        if rows_of(batch) + rows_of([sample]) <= LIMITS.max_rows:
            batch.append(sample)
    return batch


def most_completions(running: Samples, queue: Queue, time: float) -> list[SimulatedSample]:
    """The batch with the most completions per second.

    Short samples run alone where others would slow them down.
    """
    order = fill_tick(lambda sample, _: sample.seconds_left * rows_of([sample]), running, queue, time)
    batches = [order[:count] for count in range(1, len(order) + 1)]
    return max(
        batches,
        key=lambda batch: (
            sum(1 / sample.seconds_left for sample in batch) / CURVE.seconds_for(rows_of(batch))
        ),
    )


def rows_of(samples: Samples) -> int:
    return sum(sample.workload.rows[0] for sample in samples)


def response_ratio(sample: SimulatedSample, time: float) -> float:
    """Seconds since arrival and still to run, over the seconds that the sample takes alone."""
    return (time - sample.workload.arrived + sample.seconds_left) / sample.workload.seconds_left[0]


RULES: dict[str, Rule] = {
    "first come, first served": partial(fill_tick, lambda sample, time: sample.workload.arrived),
    "shortest remaining time": partial(fill_tick, lambda sample, time: sample.seconds_left),
    "highest response ratio": partial(fill_tick, lambda sample, time: -response_ratio(sample, time)),
    "most completions a second": most_completions,
    "due time (`select_batch`)": partial(select_next_batch, limits=LIMITS, curve=CURVE),
}


def trace(rate: float, seed: int) -> list[SimulatedSample]:
    """A Poisson trace of mixed requests, `rate` a second."""
    rng, time = random.Random(seed), 0.0
    samples: list[SimulatedSample] = []
    for _ in range(NUM_REQUESTS):
        time += rng.expovariate(rate)
        steps, rows = rng.choice(STEPS), rng.choice(ROWS)
        workload = make_workload([rows] * steps, [float(rows)] * steps, TOKENS, CURVE, time)
        samples.append(SimulatedSample(workload))
    return samples


def rows(rates: Sequence[float] = RATES) -> Iterator[list[str]]:
    """The table's rows: every rule at every rate."""
    for rate in rates:
        for name, rule in RULES.items():
            runs = [simulate(trace(rate, seed), rule, CURVE) for seed in (0, 1, 2)]
            yield [f"{rate:g}", name, *(f"{figure:.2f}" for figure in _figures(runs))]


def _figures(runs: Sequence[Samples]) -> list[float]:
    """Mean and p95 of latency, p95 and maximum of slowdown: medians over the runs."""
    latencies = [[sample.latency for sample in run] for run in runs]
    slowdowns = [[sample.latency / sample.workload.seconds_left[0] for sample in run] for run in runs]
    by_run = zip(
        map(statistics.mean, latencies),
        map(_p95, latencies),
        map(_p95, slowdowns),
        map(max, slowdowns),
        strict=True,
    )
    return [statistics.median(figure) for figure in zip(*by_run, strict=True)]


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
