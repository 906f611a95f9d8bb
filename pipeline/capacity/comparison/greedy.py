"""What a greedy caller does to the others, and shares by weight.

Simulated with the engine's selection on a cost curve. Ten callers of equal weight; nine send at random what
together is a part of the capacity, and the tenth as much as the whole device can do: ten times its share.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS, ROWS, TOKENS, capacity
from safelight.pipeline.params import Share
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import Rule, SimulatedSample, fair_rule, simulate
from safelight.pipeline.scheduling.workload import make_workload

NUM_POLITE = 9
GREEDY_TIMES_SHARE = 10.0
SECONDS = 240.0
POLITE_LOADS = (0.3, 0.6, 0.8)  # of their shares, which are a tenth of the capacity each
STEPS = (8, 20, 30, 40)
CAPACITY = capacity(sum(STEPS) / len(STEPS))  # images a second
WEIGHTS = {"1": 1.0, "2": 2.0, "4": 4.0}
SHARE_SECONDS = 60.0
COLUMNS = ("polite load", "selection", "polite p95 alone, s", "with the greedy one, s", "ratio", "images/s")
SHARE_COLUMNS = ("weight", "share by weight", "share of device-seconds", "difference")


def make_image(rng: random.Random, share: Share, arrived: float) -> SimulatedSample:
    """A random image of the mix."""
    steps, rows = rng.choice(STEPS), rng.choice(ROWS)
    workload = make_workload([rows] * steps, [float(rows)] * steps, TOKENS, CURVE, arrived)
    return SimulatedSample(replace(workload, share=share))


def arrivals(caller: str, rate: float, seed: int) -> list[SimulatedSample]:
    """A Poisson process of images of one caller, `rate` a second."""
    rng, time, images = random.Random(seed), 0.0, list[SimulatedSample]()
    while (time := time + rng.expovariate(rate)) < SECONDS:
        images.append(make_image(rng, Share(caller), time))
    return images


def make_rule(selection: str) -> Rule:
    """The rule of one selection; it has a state, so each run has its own."""
    if selection == "fair shares":
        return fair_rule(LIMITS, CURVE)
    return partial(select_next_batch, limits=LIMITS, curve=CURVE)


def run(rule: Rule, polite_load: float, has_greedy: bool) -> tuple[float, float]:
    """The p95 of polite callers' images, and images a second until the last arrival.

    Args:
        rule: Selects the samples of each tick.
        polite_load: Of each polite caller, as a share of its own share of the capacity.
        has_greedy: Whether the greedy caller is there.
    """
    share = CAPACITY / (NUM_POLITE + 1)
    images = [
        image
        for number in range(NUM_POLITE)
        for image in arrivals(f"polite {number}", polite_load * share, number)
    ]
    polite = list(images)
    if has_greedy:
        images += arrivals("greedy", GREEDY_TIMES_SHARE * share, NUM_POLITE)
    done = simulate(images, rule, CURVE)
    latencies = sorted(image.latency for image in polite)
    rate = sum(image.done_at <= SECONDS for image in done) / SECONDS
    return latencies[int(0.95 * len(latencies))], rate


def greedy_rows(loads: Sequence[float] = POLITE_LOADS) -> Iterator[list[str]]:
    """For each load of the polite callers, and each selection: what the greedy caller does to them."""
    for load in loads:
        for selection in ("one queue", "fair shares"):
            alone, _ = run(make_rule(selection), load, has_greedy=False)
            beside, rate = run(make_rule(selection), load, has_greedy=True)
            yield [
                f"{load:.0%}", selection, f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.2f}",
                f"{rate:.2f}",
            ]  # fmt: skip


def shares_of(weights: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The share of the device-seconds that each of some callers has, all of whom always wait."""
    rng = random.Random(0)
    count = round(2 * seconds * CAPACITY)  # enough for each to take the whole device
    images = [
        make_image(rng, Share(caller, weights[caller]), 0.0) for caller in weights for _ in range(count)
    ]
    used = dict.fromkeys(weights, 0.0)
    rule = fair_rule(LIMITS, CURVE)

    def counting(running: Sequence[SimulatedSample], queue: object, now: float) -> list[SimulatedSample]:
        selected = rule(running, queue, now)  # type: ignore[arg-type]
        work = {id(image): image.workload.work[image.step_index] for image in selected}
        price = CURVE.seconds_for(sum(work.values())) / sum(work.values())
        for image in selected if now < seconds else ():
            used[image.workload.share.caller] += price * work[id(image)]
        return selected

    simulate(images, counting, CURVE)
    total = sum(used.values())
    return {caller: part / total for caller, part in used.items()}


def share_rows(seconds: float | None = None) -> Iterator[list[str]]:
    """For each weight: what is due to it, and what it has had."""
    total = sum(WEIGHTS.values())
    for caller, share in shares_of(WEIGHTS, seconds or SHARE_SECONDS).items():
        due = WEIGHTS[caller] / total
        yield [caller, f"{due:.2%}", f"{share:.2%}", f"{share / due - 1:+.1%}"]
