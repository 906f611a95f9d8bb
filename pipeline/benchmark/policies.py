"""`python -m safelight.pipeline.benchmark.policies`: rules for who runs in a tick, simulated on a cost curve. Deterministic, takes a minute.

A simulation, because what differs between rules is less than what differs between two runs on the clock.
"""

import random
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import select_next_batch
from safelight.pipeline.scheduling.simulation import Samples, Queue, Rule, SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import make_workload

# seconds of ticks of 1, 2, 4, ... rows of the embedded model on two cores, rounded; here work is counted in rows
CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.008, 0.012, 0.020, 0.034, 0.062, 0.130))
LIMITS = Limits(16, 16 * 64)
NUM_REQUESTS = 400
RATES = (4.0, 5.0, 5.5, 6.0)  # requests a second; 6.2 is what this curve can serve


def by(
    key: Callable[[SimulatedSample, float], float], begun: Samples, queue: Queue, now: float
) -> list[SimulatedSample]:
    """As many as fit, in the order of `key`."""
    chosen: list[SimulatedSample] = []
    for each in sorted((*begun, *queue), key=lambda each: key(each, now)):
        if rows_of(chosen) + rows_of([each]) <= LIMITS.max_rows:
            chosen.append(each)
    return chosen


def most_completions(begun: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
    """The set with most completions a second: the shortest alone, where the others would slow them down."""
    order = by(lambda each, _: each.seconds_left * rows_of([each]), begun, queue, now)
    sets = [order[:count] for count in range(1, len(order) + 1)]
    return max(sets, key=lambda each: sum(1 / one.seconds_left for one in each) / CURVE.seconds_for(rows_of(each)))


def rows_of(samples: Samples) -> int:
    return sum(each.workload.rows[0] for each in samples)


RULES: dict[str, Rule] = {
    "first come, first served": partial(by, lambda each, now: each.workload.arrived),
    "soonest done": partial(by, lambda each, now: each.seconds_left),
    "highest response ratio": partial(
        by, lambda each, now: -(now - each.workload.arrived + each.seconds_left) / each.workload.seconds_left[0]
    ),
    "most completions a second": most_completions,
    "due (`batcher.choose`)": partial(select_next_batch, limits=LIMITS, curve=CURVE),
}


def trace(rate: float, seed: int) -> list[SimulatedSample]:
    """A Poisson trace of unlike requests."""
    rng, now, coming = random.Random(seed), 0.0, list[SimulatedSample]()
    for _ in range(NUM_REQUESTS):
        now += rng.expovariate(rate)
        steps, rows = rng.choice((8, 20, 30, 40)), rng.choice((1, 2, 2))
        coming.append(SimulatedSample(make_workload([rows] * steps, [float(rows)] * steps, 64, CURVE, now)))
    return coming


def main() -> None:
    sys.stdout.write(
        "| requests a second | rule | mean latency, s | p95, s | p95 of latency / time alone | worst |\n|---|---|---|---|---|---|\n"
    )
    for rate in RATES:
        for name, rule in RULES.items():
            runs = [simulate(trace(rate, seed), rule, CURVE) for seed in (0, 1, 2)]
            sys.stdout.write(
                f"| {rate:g} | {name} | " + " | ".join(f"{each:.2f}" for each in _figures(runs)) + " |\n"
            )


def _figures(runs: Sequence[Samples]) -> list[float]:
    latencies = [[each.latency for each in run] for run in runs]
    slowdowns = [[each.latency / each.workload.seconds_left[0] for each in run] for run in runs]
    of_runs = zip(
        map(statistics.mean, latencies),
        map(_p95, latencies),
        map(_p95, slowdowns),
        map(max, slowdowns),
        strict=True,
    )
    return [statistics.median(figure) for figure in zip(*of_runs, strict=True)]


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
