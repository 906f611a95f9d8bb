"""A simulated denoiser: the engine's own rules on a cost curve, deterministic, thousands of times as fast."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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


Samples = Sequence[SimulatedSample]
Queue = WaitingQueue[SimulatedSample]
# From the running samples, the queue and the time to the samples of the next tick.
Rule = Callable[[Samples, Queue, float], list[SimulatedSample]]
# Takes the new sample, the running samples, the queue (the new one in it) and the time.
ArrivalHook = Callable[[SimulatedSample, Samples, Queue, float], None]
# Takes the new sample, the running samples, the queue (without it) and the time: whether it is let in.
AdmissionRule = Callable[[SimulatedSample, Samples, Queue, float], bool]


def fair_rule(limits: Limits, curve: CostCurve, credit_ticks: float = CREDIT_TICKS) -> Rule:
    """The engine's rule, with shares of its own. Callers are charged by the curve."""
    shares = FairShares(credit_ticks)

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        selected = select_next_batch(running, queue, now, limits, curve, shares)
        charge_by_curve(shares, selected, running, queue, curve)
        return selected

    return rule


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
    running, queue, done, now = list[SimulatedSample](), Queue(curve.slowdown), list[SimulatedSample](), 0.0
    while arrivals or running or len(queue):
        if not running and not len(queue):
            now = max(now, arrivals[0].workload.arrived)
        while arrivals and arrivals[0].workload.arrived <= now:
            arrival = arrivals.popleft()
            if admits is not None and not admits(arrival, running, queue, now):
                continue
            queue.add(arrival)
            if on_arrival is not None:
                on_arrival(arrival, running, queue, now)
        if not running and not len(queue):
            continue
        selected = rule(running, queue, now)
        now += curve.seconds_for(sum(sample.workload.work[sample.step_index] for sample in selected))
        for sample in selected:
            if sample.step_index == 0:
                queue.remove(sample)
                running.append(sample)
            sample.step_index += 1
            sample.done_at = now
        done += [sample for sample in running if sample.step_index == sample.workload.num_ticks]
        running = [sample for sample in running if sample.step_index < sample.workload.num_ticks]
    return done
