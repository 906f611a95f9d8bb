"""Promises under overload: `python -m safelight.pipeline.benchmark.overload [--json]`.

Requests come at random at several times what a device can draw, and nobody waits for an answer before
sending the next. Admission and selection are the engine's own, on a cost curve. Deterministic.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safelight.pipeline.benchmark.machine import SIMULATION
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS
from safelight.pipeline.params import Share, Urgency
from safelight.pipeline.scheduling.promises import AdmissionControl, Demand, Forecast
from safelight.pipeline.scheduling.simulation import (
    Queue,
    Rule,
    Samples,
    SimulatedSample,
    fair_rule,
    simulate,
)
from safelight.pipeline.scheduling.workload import make_workload

SECONDS = 60.0
PROMISES = (30.0,)  # seconds
LOADS = (0.9, 5.0)  # of the capacity
CALLERS = (1, 10)
# What a tick takes, as a multiple of what the forecast believes.
ERRORS = (1.0, 1.3)
STEPS, ROWS = (8, 20, 30, 40), (1, 2, 2)
MEAN_WORK = statistics.mean(STEPS) * statistics.mean(ROWS)
CAPACITY = LIMITS.max_rows / CURVE.seconds_for(LIMITS.max_rows) / MEAN_WORK  # images a second
COLUMNS = (
    "load", "promise, s", "callers", "ticks by forecast", "goodput", "within promise", "refused",
    "forecast error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overload:
    """What became of the requests.

    Attributes:
        goodput: Work of images within their promise a second, as a part of the capacity.
        within: Part of the images let in that are done as promised.
        refused: Part of the requests.
        error: Median of the errors of the forecasts at admission.
    """

    goodput: float
    within: float
    refused: float
    error: float


def arrivals(load: float, promise: float, callers: int, seed: int = 0) -> list[SimulatedSample]:
    """A Poisson process of images of the mix, of callers who send alike."""
    rng, time, samples = random.Random(seed), 0.0, list[SimulatedSample]()
    while (time := time + rng.expovariate(load * CAPACITY)) < SECONDS:
        steps, rows = rng.choice(STEPS), rng.choice(ROWS)
        workload = make_workload(
            [rows] * steps, [float(rows)] * steps, 64, CURVE, time, urgency=Urgency(time + promise)
        )
        share = Share(f"caller {rng.randrange(callers)}")
        samples.append(SimulatedSample(replace(workload, share=share)))
    return samples


class PromisingDevice:
    """A device that lets samples in by promise.

    Args:
        error: What a tick takes, as a multiple of what the forecast believes.
    """

    def __init__(self, error: float = 1.0):
        self.forecasts: dict[int, Forecast] = {}
        self._control = AdmissionControl()
        self._control.update(replace(CURVE, slowdown=1 / error), LIMITS.max_rows)
        self._rule = fair_rule(LIMITS, CURVE)
        self._present: set[int] = set()

    def admits(self, sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
        """Whether the sample is let in."""
        self._observe(running, queue, now)
        workload = sample.workload
        promise = workload.urgency.promise
        demand = Demand(
            str(id(sample)), workload.num_ticks, sum(workload.work), promise, workload.arrived, workload.share
        )
        forecast = self._control.offer(demand, now)
        if forecast.is_admitted:
            self.forecasts[id(sample)] = forecast
            self._present.add(id(sample))
        return forecast.is_admitted

    def select(self, running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        """The samples of the next tick."""
        self._observe(running, queue, now)
        return self._rule(running, queue, now)

    def _observe(self, running: Samples, queue: Queue, now: float) -> None:
        present = {id(sample) for sample in (*running, *queue)}
        for number in self._present - present:
            self._control.leave(str(number), now, is_done=True)
        self._present &= present
        for sample in running:
            self._control.progress(str(id(sample)), sample.step_index)


def run(load: float, promise: float, callers: int, error: float = 1.0) -> Overload:
    """Simulate a load; see `Overload`."""
    device = PromisingDevice(error)
    offered = arrivals(load, promise, callers)
    rule: Rule = device.select
    done = simulate(offered, rule, CURVE, admits=device.admits)
    kept = [sample for sample in done if sample.done_at <= sample.workload.urgency.promise]
    full = CURVE.seconds_for(LIMITS.max_rows) / LIMITS.max_rows
    end = max(SECONDS, max(sample.done_at for sample in done))
    work = sum(sum(sample.workload.work) for sample in kept)
    errors = [abs(sample.latency / device.forecasts[id(sample)].seconds - 1) for sample in done]
    return Overload(
        goodput=work * full / end,
        within=len(kept) / len(done),
        refused=1 - len(done) / len(offered),
        error=statistics.median(errors),
    )


def rows(loads: Sequence[float] = LOADS) -> Iterator[list[str]]:
    """One row for each load, promise, number of callers and error of the forecast's ticks."""
    for load in loads:
        for promise in PROMISES:
            for callers in CALLERS:
                for error in ERRORS:
                    result = run(load, promise, callers, error)
                    yield [
                        f"{load:g}", f"{promise:g}", str(callers), f"{error:g}", f"{result.goodput:.0%}",
                        f"{result.within:.1%}", f"{result.refused:.0%}", f"{result.error:.0%}",
                    ]  # fmt: skip


def main() -> None:
    """Print the table, or with `--json` its record for docs/data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the record for docs/data")
    args = parser.parse_args()
    table = list(rows())
    if args.json:
        command = "python -m safelight.pipeline.benchmark.overload"
        record = benchmark_record(SIMULATION, command, {"tables": [{"columns": COLUMNS, "rows": table}]})
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    for row in (COLUMNS, ["---"] * len(COLUMNS), *table):
        sys.stdout.write(f"| {' | '.join(row)} |\n")


if __name__ == "__main__":
    main()
