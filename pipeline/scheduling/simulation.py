"""A simulated denoiser: the engine's own rules on a cost curve, deterministic, thousands of times as fast."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import CREDIT_TICKS, FairShares
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import charge_by_curve, select_next_batch
from safelight.pipeline.scheduling.workload import SampleWorkload


@dataclass(slots=True, eq=False)
class SimulatedSample:
    """A sample that has a workload and no image."""

    workload: SampleWorkload
    step_index: int = 0
    done_at: float = 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds that its remaining ticks would take alone."""
        return self.workload.seconds_left[self.step_index]

    @property
    def latency(self) -> float:
        return self.done_at - self.workload.arrived

    @property
    def is_done(self) -> bool:
        return self.step_index == self.workload.num_ticks


Samples = Sequence[SimulatedSample]
Queue = WaitingQueue[SimulatedSample]
# From the running samples, the queue and the time to the samples of the next tick.
Rule = Callable[[Samples, Queue, float], list[SimulatedSample]]
# Takes the new sample, the running samples, the queue (the new one in it) and the time.
ArrivalHook = Callable[[SimulatedSample, Samples, Queue, float], None]
# Takes the new sample, the running samples, the queue (without it) and the time: whether it is let in.
AdmissionRule = Callable[[SimulatedSample, Samples, Queue, float], bool]


class Policy(Protocol):
    """What a simulated engine lets in, and what it runs. Each engine has one of its own."""

    def admits(self, sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
        """Whether a new sample, which is not in the queue yet, is let in."""

    def select(self, running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        """The samples of the next ticks; at least one if there are any."""

    def start_ticks(self, selected: Samples, running: Samples, queue: Queue, ticks: int) -> None:
        """Note that a selection runs for some ticks; the samples that begin are still in the queue."""


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """A policy of two functions without a state of ticks."""

    rule: Rule
    admission: AdmissionRule | None = None

    def admits(self, sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
        return self.admission is None or self.admission(sample, running, queue, now)

    def select(self, running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        return self.rule(running, queue, now)

    def start_ticks(self, selected: Samples, running: Samples, queue: Queue, ticks: int) -> None:
        pass


class FairPolicy:
    """The engine's selection, with shares of its own. Callers are charged by the curve.

    Args:
        limits: The most that a tick may hold.
        curve: What a tick takes.
        credit_ticks: As in `FairShares`.
        admission: Which samples are let in; None: all.
    """

    def __init__(
        self,
        limits: Limits,
        curve: CostCurve,
        credit_ticks: float = CREDIT_TICKS,
        admission: AdmissionRule | None = None,
    ):
        self.limits = limits
        self.curve = curve
        self.shares = FairShares(credit_ticks)
        self._admission = admission

    def admits(self, sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
        return self._admission is None or self._admission(sample, running, queue, now)

    def select(self, running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        return select_next_batch(running, queue, now, self.limits, self.curve, self.shares)

    def start_ticks(self, selected: Samples, running: Samples, queue: Queue, ticks: int) -> None:
        charge_by_curve(self.shares, selected, running, queue, self.curve, ticks)


def fair_rule(limits: Limits, curve: CostCurve, credit_ticks: float = CREDIT_TICKS) -> Rule:
    """The engine's selection as a rule that is called before every tick."""
    policy = FairPolicy(limits, curve, credit_ticks)

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        selected = policy.select(running, queue, now)
        policy.start_ticks(selected, running, queue, 1)
        return selected

    return rule


class SimulatedEngine:
    """One device: samples arrive, are selected for some ticks, and leave.

    Args:
        policy: Its own.
        curve: What a tick takes.
        stride: The most ticks between two selections; the engine has 1.
        expires: Whether samples leave at their deadline, done or not, as they leave the engine.
    """

    def __init__(self, policy: Policy, curve: CostCurve, stride: int = 1, expires: bool = False):
        self.running: list[SimulatedSample] = []
        self.queue = Queue(curve.slowdown)
        self._policy = policy
        self._curve = curve
        self._stride = stride
        self._expires = expires
        self._deadlines: list[tuple[float, int, SimulatedSample]] = []  # a heap
        self._selected: list[SimulatedSample] = []
        self._ticks = 0  # of `_selected`
        self._num_arrived = 0

    @property
    def num_samples(self) -> int:
        return len(self.running) + len(self.queue)

    def arrive(self, sample: SimulatedSample, now: float) -> bool:
        """Queue a sample if it is let in; returns whether it is."""
        if not self._policy.admits(sample, self.running, self.queue, now):
            return False
        self.queue.add(sample)
        self._num_arrived += 1
        if self._expires and sample.workload.deadline < math.inf:
            heapq.heappush(self._deadlines, (sample.workload.deadline, self._num_arrived, sample))
        return True

    def start_ticks(self, now: float) -> float | None:
        """Select samples and run them; returns the seconds until `end_ticks` is due, or None without any."""
        while self._deadlines and self._deadlines[0][0] <= now:
            self._expire(heapq.heappop(self._deadlines)[-1])
        if not self.running and not len(self.queue):
            return None
        selected = self._policy.select(self.running, self.queue, now)
        ticks = min(self._stride, *(sample.workload.num_ticks - sample.step_index for sample in selected))
        self._policy.start_ticks(selected, self.running, self.queue, ticks)
        work = 0.0
        for sample in selected:
            work += sample.workload.work[sample.step_index]
            if sample.step_index == 0:
                self.queue.remove(sample)
                self.running.append(sample)
        self._selected, self._ticks = selected, ticks
        return ticks * self._curve.seconds_for(work)

    def end_ticks(self, now: float) -> list[SimulatedSample]:
        """End what `start_ticks` began; returns the samples that are done, in order of arrival."""
        has_ended = False
        for sample in self._selected:
            sample.step_index += self._ticks
            sample.done_at = now
            has_ended = has_ended or sample.is_done
        self._selected = []
        if not has_ended:
            return []
        done = [sample for sample in self.running if sample.is_done]
        self.running = [sample for sample in self.running if not sample.is_done]
        return done

    def _expire(self, sample: SimulatedSample) -> None:
        if sample.step_index == 0:
            self.queue.remove(sample)
        elif not sample.is_done:
            self.running.remove(sample)


def simulate(
    samples: Iterable[SimulatedSample],
    rule: Rule,
    curve: CostCurve,
    on_arrival: ArrivalHook | None = None,
    admits: AdmissionRule | None = None,
) -> list[SimulatedSample]:
    """Run all `samples` tick by tick, each from its arrival; return them in the order of finishing.

    Args:
        samples: In any order.
        rule: Selects the samples of a tick.
        curve: What a tick takes.
        on_arrival: Called with each sample that is let in.
        admits: Which samples are let in; None: all. The others are not returned.
    """
    arrivals = deque(sorted(samples, key=lambda sample: sample.workload.arrived))
    engine, done, now = SimulatedEngine(RulePolicy(rule, admits), curve), list[SimulatedSample](), 0.0
    while arrivals or engine.num_samples:
        if not engine.num_samples:
            now = max(now, arrivals[0].workload.arrived)
        while arrivals and arrivals[0].workload.arrived <= now:
            arrival = arrivals.popleft()
            if engine.arrive(arrival, now) and on_arrival is not None:
                on_arrival(arrival, engine.running, engine.queue, now)
        seconds = engine.start_ticks(now)
        if seconds is not None:
            now += seconds
            done += engine.end_ticks(now)
    return done
