"""A denoiser on a cost curve instead of on a clock: the engine's own rules, deterministic, thousands of times as fast."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.workload import SampleWorkload


@dataclass(slots=True, eq=False)
class SimulatedSample:
    """A sample that is only its load."""

    workload: SampleWorkload
    step_index: int = 0
    done_at: float = 0.0

    @property
    def left(self) -> float:
        """Seconds that it would take from here alone."""
        return self.workload.left[self.step_index]

    @property
    def latency(self) -> float:
        return self.done_at - self.workload.arrived


Here = Sequence[SimulatedSample]
Queue = WaitingQueue[SimulatedSample]
Rule = Callable[
    [Here, Queue, float], list[SimulatedSample]
]  # of those who have begun and those who wait, now, who runs
Watch = Callable[[SimulatedSample, Here, Queue, float], None]


def simulate(
    coming: Iterable[SimulatedSample], rule: Rule, curve: CostCurve, on_arrival: Watch | None = None
) -> list[SimulatedSample]:
    """All of `coming` moved on, tick by tick, to their end; returned in the order in which they leave.

    `on_arrival` is shown everyone who comes, with those who have begun, those who wait (itself among them), and the time.
    """
    due = deque(sorted(coming, key=lambda each: each.workload.arrived))
    begun, queue, done, now = list[SimulatedSample](), Queue(curve.slowdown), list[SimulatedSample](), 0.0
    while due or begun or len(queue):
        if not begun and not len(queue):
            now = max(now, due[0].workload.arrived)
        while due and due[0].workload.arrived <= now:
            queue.add(who := due.popleft())
            if on_arrival is not None:
                on_arrival(who, begun, queue, now)
        chosen = rule(begun, queue, now)
        now += curve.seconds_for(sum(each.workload.work[each.step_index] for each in chosen))
        for each in chosen:
            if each.step_index == 0:
                queue.remove(each)
                begun.append(each)
            each.step_index, each.done_at = each.step_index + 1, now
        done += [each for each in begun if each.step_index == each.workload.num_ticks]
        begun = [each for each in begun if each.step_index < each.workload.num_ticks]
    return done
