"""`python -m pipeline.bench.policies`: rules for who runs in a tick, simulated on a cost curve. Deterministic, takes a minute.

A simulation, because what differs between rules is less than what differs between two runs on the clock.
"""

import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.batcher import Limits, choose
from pipeline.curve import CostCurve
from pipeline.load import Load, make_load

# seconds of ticks of 1, 2, 4, ... rows of the embedded model on two cores, rounded; here work is counted in rows
CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.008, 0.012, 0.020, 0.034, 0.062, 0.130))
LIMITS = Limits(16, 16 * 64)
NUM_REQUESTS = 400
RATES = (4.0, 5.0, 5.5, 6.0)  # requests a second; 6.2 is what this curve can serve


@dataclass(slots=True, eq=False)
class Request:
    """One of a trace, on its way."""

    load: Load
    step_index: int = 0
    done_at: float = 0.0

    @property
    def left(self) -> float:
        return self.load.left[self.step_index]

    @property
    def rows(self) -> int:
        return self.load.rows[0]

    @property
    def latency(self) -> float:
        return self.done_at - self.load.arrived


Rule = Callable[[Sequence[Request], float], list[Request]]


def by(key: Callable[[Request, float], float], here: Sequence[Request], now: float) -> list[Request]:
    """As many as fit, in the order of `key`."""
    chosen: list[Request] = []
    for request in sorted(here, key=lambda each: key(each, now)):
        if sum(each.rows for each in chosen) + request.rows <= LIMITS.max_rows:
            chosen.append(request)
    return chosen


def most_completions(here: Sequence[Request], now: float) -> list[Request]:
    """The set with most completions a second: the shortest alone, where the others would slow them down."""
    order = by(lambda each, _: each.left * each.rows, here, now)
    sets = [order[:count] for count in range(1, len(order) + 1)]
    return max(sets, key=lambda each: sum(1 / one.left for one in each) / CURVE.seconds_for(sum(one.rows for one in each)))


RULES: dict[str, Rule] = {
    "first come, first served": partial(by, lambda each, now: each.load.arrived),
    "soonest done": partial(by, lambda each, now: each.left),
    "highest response ratio": partial(by, lambda each, now: -(now - each.load.arrived + each.left) / each.load.left[0]),
    "most completions a second": most_completions,
    "due (`batcher.choose`)": lambda here, now: choose(here, now, LIMITS, CURVE),
}


def simulate(rule: Rule, rate: float, seed: int) -> list[Request]:
    """A Poisson trace of unlike requests, each moved on tick by tick until it is done."""
    rng, now, coming = random.Random(seed), 0.0, list[Request]()
    for _ in range(NUM_REQUESTS):
        now += rng.expovariate(rate)
        steps, rows = rng.choice((8, 20, 30, 40)), rng.choice((1, 2, 2))
        coming.append(Request(make_load([rows] * steps, [float(rows)] * steps, 64, CURVE, now)))
    done, due, here, now = list[Request](), coming[::-1], list[Request](), 0.0
    while due or here:
        now = max(now, due[-1].load.arrived) if not here else now
        while due and due[-1].load.arrived <= now:
            here.append(due.pop())
        chosen = rule(here, now)
        now += CURVE.seconds_for(sum(each.rows for each in chosen))
        for each in chosen:
            each.step_index += 1
            each.done_at = now
        done += [each for each in here if not each.left]
        here = [each for each in here if each.left]
    return done


def main() -> None:
    sys.stdout.write(
        "| requests a second | rule | mean latency, s | p95, s | p95 of latency / time alone | worst |\n|---|---|---|---|---|---|\n"
    )
    for rate in RATES:
        for name, rule in RULES.items():
            runs = [simulate(rule, rate, seed) for seed in (0, 1, 2)]
            sys.stdout.write(f"| {rate:g} | {name} | " + " | ".join(f"{each:.2f}" for each in _figures(runs)) + " |\n")


def _figures(runs: Sequence[Sequence[Request]]) -> list[float]:
    latencies = [[each.latency for each in run] for run in runs]
    slowdowns = [[each.latency / each.load.left[0] for each in run] for run in runs]
    of_runs = zip(map(statistics.mean, latencies), map(_p95, latencies), map(_p95, slowdowns), map(max, slowdowns), strict=True)
    return [statistics.median(figure) for figure in zip(*of_runs, strict=True)]


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
