"""What each policy makes of requests with deadlines, on any number of devices."""

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from safelight.pipeline.capacity.comparison.device import CURVE
from safelight.pipeline.capacity.comparison.policies import POLICIES, work_left
from safelight.pipeline.capacity.comparison.traffic import MOST_WORK, TRAFFIC, Traffic, arrivals
from safelight.pipeline.capacity.routing import less_busy_of_two
from safelight.pipeline.scheduling.simulation import Policy, SimulatedEngine, SimulatedSample

SECONDS = 40.0
# Of many devices: ticks between two selections, as in a forecast (of fewer it is 1, as in the engine), and
# the length of a trace, which is one period of peaks.
MANY_DEVICES, COARSE_STRIDE, MANY_DEVICES_SECONDS = 100, 4, 20.0
DEVICE_RUNS = 8  # fewer devices are simulated with several seeds, so that all figures have enough images
STRIDE_COLUMNS = ("traffic", "attainment", "fairness", "p95")
COLUMNS = (
    "devices", "traffic", "policy", "goodput", "attainment", "longest", "kept", "fairness", "refused",
    "p50, s", "p95, s",
)  # fmt: skip


@dataclass(slots=True)
class Group:
    """Requests that are counted together.

    Attributes:
        asked: Their number.
        work: Their work.
        in_time: The number of those that were done by their deadline.
        work_in_time: The work of those.
    """

    asked: int = 0
    work: float = 0.0
    in_time: int = 0
    work_in_time: float = 0.0

    @property
    def attainment(self) -> float:
        """The part of the requests that were done in time."""
        return self.in_time / self.asked if self.asked else math.nan


@dataclass(slots=True)
class Outcome:
    """What became of the requests of a trace.

    Attributes:
        total: All requests.
        by_caller: The requests of each caller.
        longest: Those with the most work.
        refused: The number that was not let in.
        latencies: Seconds of each image that is done, late or not.
    """

    total: Group = field(default_factory=Group)
    by_caller: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    longest: Group = field(default_factory=Group)
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    def add_request(self, sample: SimulatedSample) -> None:
        """Count a request that arrives."""
        for group in self._groups(sample):
            group.asked += 1
            group.work += work_left(sample)

    def add_done(self, sample: SimulatedSample) -> None:
        """Count an image that is done."""
        self.latencies.append(sample.latency)
        if sample.done_at <= sample.workload.deadline:
            for group in self._groups(sample):
                group.in_time += 1
                group.work_in_time += sum(sample.workload.work)

    @property
    def kept(self) -> float:
        """The part of the requests that were let in that were done in time."""
        return self.total.in_time / max(self.total.asked - self.refused, 1)

    @property
    def fairness(self) -> float:
        """Jain's index of the callers' work in time, relative to fair parts of all of it."""
        callers = list(self.by_caller.values())
        fair = max_min(self.total.work_in_time, [group.work for group in callers])
        return jain([group.work_in_time / part for group, part in zip(callers, fair, strict=True)])

    def percentile(self, share: float) -> float:
        """A quantile of the latencies; NaN if nothing is done."""
        latencies = sorted(self.latencies)
        return latencies[min(int(share * len(latencies)), len(latencies) - 1)] if latencies else math.nan

    def _groups(self, sample: SimulatedSample) -> list[Group]:
        groups = [self.total, self.by_caller[sample.workload.share.caller]]
        return [*groups, self.longest] if sum(sample.workload.work) >= MOST_WORK else groups


def max_min(total: float, demands: Sequence[float]) -> list[float]:
    """The max-min fair parts of `total`, which is at most the sum of `demands`: small demands are met first.

    The others have equal parts of what is left.
    """
    parts, rest = [0.0] * len(demands), total
    for rank, index in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        parts[index] = min(demands[index], rest / (len(demands) - rank))
        rest -= parts[index]
    return parts


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1 / n if one has everything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else math.nan


def run_devices(
    requests: Iterable[SimulatedSample],
    policies: Sequence[Policy],
    outcome: Outcome,
    seed: int,
    stride: int,
) -> None:
    """Send requests to devices, each to the less busy of two random ones, until all have left.

    Args:
        requests: In order of time.
        policies: One for each device.
        outcome: Gets what becomes of them.
        seed: Of the choice of devices.
        stride: Ticks between two selections of a device.
    """
    devices = _Devices([SimulatedEngine(policy, CURVE, stride, expires=True) for policy in policies], outcome)
    rng = random.Random(seed)
    for sample in requests:
        devices.run_until(sample.workload.arrived)
        outcome.add_request(sample)
        engine = less_busy_of_two(rng, devices.engines, lambda engine: engine.num_samples)
        if not devices.arrive(sample, engine):
            outcome.refused += 1
    devices.run_until(math.inf)


class _Devices:
    """Devices whose ticks end at different times."""

    def __init__(self, engines: Sequence[SimulatedEngine], outcome: Outcome):
        self.engines = engines
        self._outcome = outcome
        self._busy = set[SimulatedEngine]()
        self._events: list[tuple[float, int, SimulatedEngine]] = []  # a heap: when the ticks of a device end
        self._numbers = count()

    def arrive(self, sample: SimulatedSample, engine: SimulatedEngine) -> bool:
        """Send a sample to a device; returns whether it is let in."""
        is_admitted = engine.arrive(sample, sample.workload.arrived)
        if is_admitted and engine not in self._busy:
            self._start(engine, sample.workload.arrived)
        return is_admitted

    def run_until(self, end: float) -> None:
        """End and begin ticks up to a time."""
        while self._events and self._events[0][0] <= end:
            now, _, engine = heapq.heappop(self._events)
            for sample in engine.end_ticks(now):
                self._outcome.add_done(sample)
            self._start(engine, now)

    def _start(self, engine: SimulatedEngine, now: float) -> None:
        seconds = engine.start_ticks(now)
        if seconds is None:
            self._busy.discard(engine)
            return
        self._busy.add(engine)
        heapq.heappush(self._events, (now + seconds, next(self._numbers), engine))


def run(policy: str, traffic: Traffic, devices: int, seconds: float, stride: int | None = None) -> Outcome:
    """Simulate a policy under a traffic; few devices several times, whose figures are put together."""
    outcome = Outcome()
    stride = stride or (COARSE_STRIDE if devices >= MANY_DEVICES else 1)
    for seed in range(num_runs(devices)):
        policies = [POLICIES[policy]() for _ in range(devices)]
        run_devices(arrivals(traffic, devices, seconds, seed), policies, outcome, seed, stride)
    return outcome


def num_runs(devices: int) -> int:
    """How often so many devices are simulated."""
    return math.ceil(DEVICE_RUNS / devices)


def row(policy: str, traffic: Traffic, devices: int) -> list[str]:
    """The row of the table."""
    seconds = MANY_DEVICES_SECONDS if devices >= MANY_DEVICES else SECONDS
    outcome = run(policy, traffic, devices, seconds)
    goodput = outcome.total.in_time / (num_runs(devices) * devices * seconds)
    return [
        str(devices), traffic.name, policy, f"{goodput:.2f}", f"{outcome.total.attainment:.0%}",
        f"{outcome.longest.attainment:.0%}", f"{outcome.kept:.0%}", f"{outcome.fairness:.2f}",
        f"{outcome.refused / outcome.total.asked:.0%}", f"{outcome.percentile(0.5):.2f}",
        f"{outcome.percentile(0.95):.2f}",
    ]  # fmt: skip


def rows(devices: Sequence[int], traffics: Sequence[Traffic] = TRAFFIC) -> Iterator[list[str]]:
    """One row for each number of devices, traffic and policy."""
    for number in devices:
        for traffic in traffics:
            for policy in POLICIES:
                yield row(policy, traffic, number)


def stride_rows(devices: int = 8) -> Iterator[list[str]]:
    """For each traffic, what the coarse selection of many devices changes: the largest over the policies."""
    for traffic in TRAFFIC:
        pairs = [
            [run(policy, traffic, devices, SECONDS, stride) for stride in (1, COARSE_STRIDE)]
            for policy in POLICIES
        ]
        attainment = max(abs(coarse.total.attainment - fine.total.attainment) for fine, coarse in pairs)
        fairness = max(abs(coarse.fairness - fine.fairness) for fine, coarse in pairs)
        p95 = max(abs(coarse.percentile(0.95) / fine.percentile(0.95) - 1.0) for fine, coarse in pairs)
        yield [traffic.name, f"{100.0 * attainment:.1f} points", f"{fairness:.3f}", f"{p95:.0%}"]
