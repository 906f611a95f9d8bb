"""Compares policies under deadlines: `python -m safelight.pipeline.benchmark.serving_policies`.

Each policy admits requests and selects the samples of every tick; all are simulated on one cost curve.
Deterministic, takes some minutes. What is simplified:

- The public traces, Alibaba's GenTD26 and Katz, were not read: the shapes of the traffic are ours.
- The policy after TetriServe (arXiv:2510.01565) has its rounds, not its sequence parallelism nor its packing
  by dynamic programming. The one after GENSERVE (arXiv:2604.04335) pauses samples with much slack and bounds
  the batch by its most urgent sample; it has no video, no sequence parallelism, no optimisation over devices.
- Devices are alike, and a request goes to the less loaded of two random ones.
"""

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from safelight.pipeline.benchmark.machine import SIMULATION
from safelight.pipeline.benchmark.policies import CURVE, LIMITS, rows_of
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.params import Share
from safelight.pipeline.scheduling.forecast import finish_times
from safelight.pipeline.scheduling.simulation import (
    AdmissionRule,
    Queue,
    Rule,
    Samples,
    SimulatedSample,
    fair_rule,
    simulate,
)
from safelight.pipeline.scheduling.workload import make_workload

SECONDS = 40.0
NUM_CALLERS = 20
DEADLINE_TIMES_ALONE = 10.0  # a full tick takes five times as long as one of a single image
ROUND_TICKS = 5  # of the policy after TetriServe
STEPS, ROWS = (20, 30, 50), (1, 2, 2)
MEAN_WORK = sum(STEPS) / len(STEPS) * sum(ROWS) / len(ROWS)
CAPACITY = LIMITS.max_rows / CURVE.seconds_for(LIMITS.max_rows) / MEAN_WORK  # images a second of a device
DEVICES = (1, 8)
COLUMNS = (
    "devices", "traffic", "policy", "goodput", "attainment", "fairness", "refused", "p50, s", "p95, s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traffic:
    """A shape of arrivals.

    Attributes:
        name: In tables.
        load: Mean offered work, as a multiple of the capacity.
        burst: The rate in bursts, as a multiple of the mean.
        skew: Exponent of Zipf's law for the callers' parts; 0: all send alike.
    """

    name: str
    load: float
    burst: float = 1.0
    skew: float = 1.0


TRAFFIC = (
    Traffic("below capacity", 0.8),
    Traffic("bursts", 0.9, burst=3.0),
    Traffic("overload", 2.0),
)
BURST_SECONDS, BURST_PERIOD = 6.0, 30.0


def arrivals(traffic: Traffic, devices: int, seed: int) -> list[SimulatedSample]:
    """Requests of many callers: a Poisson process whose rate rises in bursts."""
    rng, time, samples = random.Random(seed), 0.0, list[SimulatedSample]()
    shares = [Share(f"caller {number}") for number in range(NUM_CALLERS)]
    weights = list(accumulate((number + 1) ** -traffic.skew for number in range(NUM_CALLERS)))
    rate = traffic.load * CAPACITY * devices
    calm = (1 - traffic.burst * BURST_SECONDS / BURST_PERIOD) / (1 - BURST_SECONDS / BURST_PERIOD)
    while (time := time + rng.expovariate(traffic.burst * rate)) < SECONDS:
        factor = traffic.burst if time % BURST_PERIOD < BURST_SECONDS else calm
        if rng.random() * traffic.burst > factor:
            continue
        steps, rows = rng.choice(STEPS), rng.choice(ROWS)
        workload = make_workload([rows] * steps, [float(rows)] * steps, 64, CURVE, time)
        deadline = time + DEADLINE_TIMES_ALONE * workload.seconds_left[0]
        [share] = rng.choices(shares, cum_weights=weights)
        samples.append(SimulatedSample(replace(workload, deadline=deadline, share=share)))
    return samples


def slack(sample: SimulatedSample, now: float) -> float:
    """Seconds that a sample may still wait, if all its ticks are full ones."""
    full = CURVE.seconds_for(LIMITS.max_rows)
    return sample.workload.deadline - now - full * (sample.workload.num_ticks - sample.step_index)


def fill(samples: Iterable[SimulatedSample]) -> list[SimulatedSample]:
    """As many samples as fit a tick, in their order; `samples` must not be empty."""
    selected: list[SimulatedSample] = []
    rows = 0
    for sample in samples:
        if rows + sample.workload.rows[0] <= LIMITS.max_rows:
            selected.append(sample)
            rows += sample.workload.rows[0]
    return selected


def by(key: Callable[[SimulatedSample, float], tuple[float, ...]]) -> Callable[[], Rule]:
    """Makes a rule that fills ticks in the order of a key."""

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        return fill(sorted((*running, *queue), key=lambda sample: key(sample, now)))

    return lambda: rule


def after_tetriserve() -> Rule:
    """Rounds of some ticks, in each of which those run that would otherwise be late (arXiv:2510.01565).

    A sample that would miss its deadline if it were not in this round comes first, the one with the least
    work of them before others; then those with time left, by deadline; then those that are late anyway. In
    between, a batch is only refilled.
    """
    state: dict[str, list[SimulatedSample]] = {"batch": []}
    ticks = iter(range(sys.maxsize))

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        samples = [*running, *queue]
        batch = state["batch"]
        if next(ticks) % ROUND_TICKS == 0:
            batch = []
        duration = ROUND_TICKS * CURVE.seconds_for(LIMITS.max_rows)

        def key(sample: SimulatedSample) -> tuple[float, float]:
            spare = slack(sample, now)
            if 0 <= spare < duration:
                return 0.0, sample.seconds_left * rows_of([sample])
            return (1.0, sample.workload.deadline) if spare >= duration else (2.0, sample.workload.arrived)

        present = set(map(id, samples))
        present_batch = [sample for sample in batch if id(sample) in present]
        ids = set(map(id, present_batch))
        others = sorted((sample for sample in samples if id(sample) not in ids), key=key)
        state["batch"] = fill([*present_batch, *others])
        return state["batch"]

    return rule


def after_genserve() -> Rule:
    """Samples pause at step boundaries for others with less slack (arXiv:2604.04335).

    A running sample is paused only for one that would be late by waiting for it; the one with the most slack
    first. A batch holds no more than its most urgent sample can bear.
    """

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        full = CURVE.seconds_for(LIMITS.max_rows)

        def key(sample: SimulatedSample) -> tuple[bool, bool, float]:
            spare = slack(sample, now)
            is_urgent = spare < full * sample.workload.num_ticks
            return spare < 0, not (is_urgent or sample.step_index > 0), spare

        ordered = fill(sorted((*running, *queue), key=key))
        urgent = ordered[0]
        ticks_left = max(urgent.workload.num_ticks - urgent.step_index, 1)
        bearable = (urgent.workload.deadline - now) / ticks_left
        batch = [urgent]
        for sample in ordered[1:]:
            if bearable < urgent.seconds_left / ticks_left or CURVE.seconds_for(
                rows_of([*batch, sample])
            ) <= max(bearable, CURVE.seconds_for(rows_of([urgent]))):
                batch.append(sample)
        return batch

    return rule


def forecast_keeps_deadline(sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
    """Whether the forecast of the engine says that a sample will be done by its deadline."""
    seconds = finish_times(running, [*queue, sample], now, LIMITS, CURVE)[-1]
    return now + seconds <= sample.workload.deadline


# For each policy: how it selects, and which requests it lets in.
POLICIES: dict[str, tuple[Callable[[], Rule], AdmissionRule | None]] = {
    "first come, first served": (by(lambda sample, now: (sample.workload.arrived,)), None),
    "earliest deadline first": (by(lambda sample, now: (sample.workload.deadline,)), None),
    "shortest remaining work": (by(lambda sample, now: (sample.seconds_left * rows_of([sample]),)), None),
    "after TetriServe": (after_tetriserve, None),
    "after GENSERVE": (after_genserve, None),
    "fair shares": (lambda: fair_rule(LIMITS, CURVE), None),
    "fair shares, admission by forecast": (lambda: fair_rule(LIMITS, CURVE), forecast_keeps_deadline),
    "earliest deadline first, admission by forecast": (
        by(lambda sample, now: (sample.workload.deadline,)),
        forecast_keeps_deadline,
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of a trace.

    Attributes:
        goodput: Images in time a second and device.
        attainment: Part of the requests that are done in time.
        fairness: Jain's index of the callers' attainment.
        refused: Part of the requests that are not let in.
        p50: Latency in seconds of what is done.
        p95: Likewise.
    """

    goodput: float
    attainment: float
    fairness: float
    refused: float
    p50: float
    p95: float


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1 / n if one has everything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else math.nan


def split(samples: Sequence[SimulatedSample], devices: int, seed: int) -> list[list[SimulatedSample]]:
    """Each sample goes to the device with less work of two random ones, as Ray Serve sends them."""
    rng, times = random.Random(seed), [0.0] * devices
    parts: list[list[SimulatedSample]] = [[] for _ in range(devices)]
    for sample in samples:
        pair = rng.sample(range(devices), min(2, devices))
        device = min(pair, key=lambda number: times[number])
        seconds = sum(sample.workload.work) * CURVE.seconds_for(LIMITS.max_rows) / LIMITS.max_rows
        times[device] = max(times[device], sample.workload.arrived) + seconds
        parts[device].append(sample)
    return parts


def run(policy: str, traffic: Traffic, devices: int) -> Outcome:
    """Simulate a policy under a trace."""
    make_rule, admits = POLICIES[policy]
    offered = arrivals(traffic, devices, seed=0)
    done = [
        sample
        for part in split(offered, devices, seed=1)
        for sample in simulate(part, make_rule(), CURVE, admits=admits)
    ]
    in_time: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    for sample in offered:
        asked[sample.workload.share.caller] += 1
    for sample in done:
        in_time[sample.workload.share.caller] += sample.done_at <= sample.workload.deadline
    latencies = sorted(sample.latency for sample in done)
    num_in_time = sum(in_time.values())
    return Outcome(
        goodput=num_in_time / SECONDS / devices,
        attainment=num_in_time / len(offered),
        fairness=jain([in_time[caller] / asked[caller] for caller in asked]),
        refused=1 - len(done) / len(offered),
        p50=latencies[len(latencies) // 2],
        p95=latencies[int(0.95 * len(latencies))],
    )


def rows(fleets: Sequence[int] = DEVICES, shapes: Sequence[Traffic] = TRAFFIC) -> Iterator[list[str]]:
    """One row for each number of devices, traffic and policy."""
    for devices in fleets:
        for traffic in shapes:
            for policy in POLICIES:
                outcome = run(policy, traffic, devices)
                yield [
                    str(devices), traffic.name, policy, f"{outcome.goodput:.2f}", f"{outcome.attainment:.0%}",
                    f"{outcome.fairness:.2f}", f"{outcome.refused:.0%}", f"{outcome.p50:.2f}",
                    f"{outcome.p95:.2f}",
                ]  # fmt: skip


def main() -> None:
    """Print the table, or with `--json` its record for docs/data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=list(DEVICES))
    parser.add_argument("--json", action="store_true", help="the record for docs/data")
    args = parser.parse_args()
    table = list(rows(args.devices))
    if args.json:
        devices = " ".join(map(str, args.devices))
        command = f"python -m safelight.pipeline.benchmark.serving_policies --devices {devices}"
        record = benchmark_record(SIMULATION, command, {"tables": [{"columns": COLUMNS, "rows": table}]})
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    for row in (COLUMNS, ["---"] * len(COLUMNS), *table):
        sys.stdout.write(f"| {' | '.join(row)} |\n")


if __name__ == "__main__":
    main()
