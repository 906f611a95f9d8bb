"""The discrete events of a fleet: arrivals, ticks, scaling, nodes that die.

An image's way is that of the service: admitted or refused, to the less busy of two replicas at random if either has room (the
rule of Ray Serve; Mitzenmacher 2001), else to the back of a queue before them; a tick moves on whom `select_next_batch` takes; an image
whose node died is sent once more. Of a fleet too large to follow every replica, a sample of replicas is followed, each of which
stands for as many others: replicas meet only through the balancing at random and through the scaling.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from safelight.pipeline.capacity.fleet.scaler import Scaler
from safelight.pipeline.capacity.fleet.traffic import arrivals
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import WaitingQueue, select_next_batch
from safelight.pipeline.scheduling.simulation import SimulatedSample
from safelight.pipeline.scheduling.workload import make_workload

Event = tuple[float, int, str, object]


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Images of one kind: rows and work of each tick, image tokens of a row, seconds in the stages around the denoiser."""

    rows: tuple[int, ...]
    work: tuple[float, ...]
    tokens: int
    around: float
    share: float = 1.0  # of the requests


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated; seconds."""

    gpus: int  # the most replicas
    curve: CostCurve
    limits: Limits
    kinds: tuple[RequestClass, ...]
    least: int = 1
    target_seconds: float = 5.0
    upscale_delay: float = 15.0
    downscale_delay: float = 600.0
    start: float = 120.0  # from the decision for a replica until it takes images: a node, and its weights
    mean_life: float = 0.0  # of a node; 0: none dies
    max_in_flight: int = 0  # over all gateways; 0: no bound
    deadline: float = 300.0
    stride: int = 1  # ticks between two choices of who runs
    control: float = 1.0  # seconds between two decisions about replicas


@dataclass(slots=True, eq=False)
class SimulatedImage(SimulatedSample):
    """A sample that may be sent again."""

    around: float = 0.0
    is_resent: bool = False


@dataclass(slots=True, eq=False)
class SimulatedReplica:
    """A denoiser: who is in it, and whether a tick is under way."""

    born: float
    queue: WaitingQueue[SimulatedImage]
    begun: list[SimulatedImage] = field(default_factory=list)
    running: list[SimulatedImage] = field(default_factory=list)
    is_leaving: bool = False
    is_dead: bool = False

    @property
    def num_here(self) -> int:
        return len(self.begun) + len(self.queue)

    @property
    def work_left(self) -> float:
        return sum(each.seconds_left for each in self.begun) + sum(each.seconds_left for each in self.queue)


@dataclass(slots=True)
class SimulationResult:
    """What became of a simulated span; of the sample, whose every replica stands for `weight`."""

    seconds: float
    weight: float
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    expired: int = 0
    resent: int = 0
    lost: int = 0  # with a second node
    gpu_seconds: float = 0.0
    busy_seconds: float = 0.0
    most_replicas: int = 0
    most_waiting: int = 0  # before the replicas
    last_done: float = 0.0

    @property
    def images(self) -> float:
        return len(self.latencies) * self.weight

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


class Simulator:
    """One run."""

    def __init__(
        self,
        fleet: Fleet,
        rate: float,
        shape: str,
        seconds: float,
        seed: int = 0,
        sample: int = 0,
        recorded: Sequence[tuple[float, int]] = (),
    ):
        """`rate` requests a second on average, at the times of `shape`; `sample` replicas are followed, all of them for 0.

        In their place, if given, those that were `recorded`: when, in seconds and rising, and which of the fleet's kinds.
        """
        self.weight = max(1.0, fleet.gpus / sample) if sample else 1.0
        self._fleet = replace(fleet, max_in_flight=round(fleet.max_in_flight / self.weight))
        self._rng = random.Random(seed)
        self._arrivals = (
            iter(recorded)
            if recorded
            else self._drawn(arrivals(rate / self.weight, shape, seconds, random.Random(seed + 1)))
        )
        self._seconds = seconds
        self._numbers = count()
        self._events: list[Event] = []
        self._waiting: deque[SimulatedImage] = deque()
        self._loads = [
            make_workload(kind.rows, kind.work, kind.tokens, fleet.curve, 0.0) for kind in fleet.kinds
        ]
        most = max(1, round(fleet.gpus / self.weight))
        self._scaler = Scaler(
            min(max(round(fleet.least / self.weight), 1 if fleet.least else 0), most), most, fleet.target_seconds, fleet.upscale_delay,
            fleet.downscale_delay, self.weight,
        )  # fmt: skip
        self._replicas = [self._make(0.0) for _ in range(self._scaler.target)]
        self._starting = 0
        self._come = 0.0
        self._in_flight = 0
        self.outcome = SimulationResult(seconds, self.weight)

    def run(self, watch: Callable[[float], None] = lambda now: None) -> SimulationResult:
        """To the end of the span; whoever is still there then is not counted. `watch` is told the time now and then."""
        self._watch = watch
        self._next_arrival()
        self._at(0.0, "control", None)
        while self._events:
            now, _, what, subject = heapq.heappop(self._events)
            if now > self._seconds:
                break
            getattr(self, f"_{what}")(now, subject)
        for each in self._replicas:
            self.outcome.gpu_seconds += self._seconds - each.born
        return self.outcome

    def _at(self, moment: float, what: str, subject: object) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), what, subject))

    def _next_arrival(self) -> None:
        if (coming := next(self._arrivals, None)) is not None:
            self._at(coming[0], "arrival", coming[1])

    def _drawn(self, moments: Iterator[float]) -> Iterator[tuple[float, int]]:
        shares = [kind.share for kind in self._fleet.kinds]
        return ((moment, self._rng.choices(range(len(shares)), shares)[0]) for moment in moments)

    def _arrival(self, now: float, index: object) -> None:
        assert isinstance(index, int)
        self._next_arrival()
        if 0 < self._fleet.max_in_flight <= self._in_flight:
            self.outcome.refused += 1
            return
        load = replace(self._loads[index], arrived=now, deadline=now + self._fleet.deadline)
        self._in_flight += 1
        self._come += load.seconds_left[0]
        self._send(now, SimulatedImage(load, around=self._fleet.kinds[index].around))

    def _send(self, now: float, image: SimulatedImage) -> None:
        replica = self._choose()
        if replica is None:
            self._waiting.append(image)
            self.outcome.most_waiting = max(self.outcome.most_waiting, len(self._waiting))
            return
        replica.queue.add(image)
        if not replica.running:
            self._start_tick(now, replica)

    def _choose(self) -> SimulatedReplica | None:
        """The less busy of two, if it has room; None if neither has, though others may: as Serve does, it is tried again later."""
        open_to = (
            [each for each in self._replicas if not each.is_leaving]
            if any(e.is_leaving for e in self._replicas)
            else self._replicas
        )
        if not open_to:
            return None
        pair = self._rng.sample(open_to, min(2, len(open_to)))
        best = min(pair, key=lambda each: each.num_here)
        return best if best.num_here < 2 * self._fleet.limits.max_rows else None

    def _start_tick(self, now: float, replica: SimulatedReplica) -> None:
        chosen = select_next_batch(replica.begun, replica.queue, now, self._fleet.limits, self._fleet.curve)
        if not chosen:
            return
        for each in chosen:
            if each.step_index == 0:
                replica.queue.remove(each)
                replica.begun.append(each)
        ticks = min(self._fleet.stride, *(each.workload.num_ticks - each.step_index for each in chosen))
        seconds = ticks * self._fleet.curve.seconds_for(
            sum(each.workload.work[each.step_index] for each in chosen)
        )
        replica.running = chosen
        for each in chosen:
            each.done_at = ticks  # until the tick's end, when it becomes the time
        self.outcome.busy_seconds += seconds
        self._at(now + seconds, "tick_end", replica)

    def _tick_end(self, now: float, subject: object) -> None:
        assert isinstance(subject, SimulatedReplica)
        replica = subject
        if replica.is_dead:
            return
        for each in replica.running:
            each.step_index += int(each.done_at)
            each.done_at = now
        replica.running = []
        done = [each for each in replica.begun if each.step_index == each.workload.num_ticks]
        if done:
            replica.begun = [each for each in replica.begun if each.step_index < each.workload.num_ticks]
            for each in done:
                self._finish(each)
            self._refill(now, len(done))
        if not replica.running:
            if replica.num_here:
                self._start_tick(now, replica)
            elif replica.is_leaving:
                self._remove(now, replica)

    def _finish(self, image: SimulatedImage) -> None:
        self._in_flight -= 1
        self.outcome.last_done = image.done_at
        latency = image.latency + image.around
        if latency > self._fleet.deadline:
            self.outcome.expired += 1
        else:
            self.outcome.latencies.append(latency)

    def _refill(self, now: float, number: int) -> None:
        """As many of those who wait before the replicas as there is room for now."""
        for _ in range(min(number, len(self._waiting))):
            self._send(now, self._waiting.popleft())

    def _control(self, now: float, _: object) -> None:
        self._at(now + self._fleet.control, "control", None)
        self._watch(now)
        if self._waiting:
            self._refill(now, len(self._waiting))
        left = sum(each.work_left for each in self._replicas) + sum(each.seconds_left for each in self._waiting)
        target = self._scaler.decide(now, left, self._come)
        if self._in_flight and target == 0:
            target = 1
        staying = [each for each in self._replicas if not each.is_leaving]
        missing = target - len(staying) - self._starting
        for _ in range(max(0, missing)):
            self._starting += 1
            self._at(now + self._fleet.start, "ready", None)
        for each in sorted(staying, key=lambda each: each.num_here)[: max(0, len(staying) - target)]:
            each.is_leaving = True
            if not each.num_here:
                self._remove(now, each)
        self.outcome.most_replicas = max(self.outcome.most_replicas, len(self._replicas))

    def _ready(self, now: float, _: object) -> None:
        self._starting -= 1
        self._replicas.append(self._make(now))
        self._refill(now, 2 * self._fleet.limits.max_rows)

    def _make(self, now: float) -> SimulatedReplica:
        replica = SimulatedReplica(now, WaitingQueue(self._fleet.curve.slowdown))
        if self._fleet.mean_life:
            self._at(now + self._rng.expovariate(1.0 / self._fleet.mean_life), "death", replica)
        return replica

    def _death(self, now: float, subject: object) -> None:
        assert isinstance(subject, SimulatedReplica)
        if subject.is_dead:
            return
        self._remove(now, subject)
        for each in [*subject.begun, *subject.queue]:
            if each.is_resent:
                self._in_flight -= 1
                self.outcome.lost += 1
            else:
                self.outcome.resent += 1
                self._send(now, SimulatedImage(each.workload, around=each.around, is_resent=True))

    def _remove(self, now: float, replica: SimulatedReplica) -> None:
        replica.is_dead = True
        self._replicas.remove(replica)
        self.outcome.gpu_seconds += now - replica.born


def mean_load(kinds: Sequence[RequestClass], curve: CostCurve) -> float:
    """Device-seconds of an image alone, over the kinds as they are asked for."""
    whole = sum(kind.share for kind in kinds)
    return sum(kind.share * sum(map(curve.seconds_for, kind.work)) for kind in kinds) / whole
