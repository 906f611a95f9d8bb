"""The policies that are compared: how each selects the samples of a tick, and which requests it lets in.

Two are written from papers, for one device and images of one model. What is left out:

- After TetriServe (arXiv:2510.01565): sequence parallelism over several GPUs, which is half of the paper.
  Without it every request has one way to run in a round, and packing by dynamic programming, which leaves as
  few requests late as possible, is to take those with the fewest rows first: each is worth one.
- After GENSERVE (arXiv:2604.04335): video, sequence parallelism, and the optimisation over all GPUs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS
from safelight.pipeline.params import Share
from safelight.pipeline.scheduling.batcher import TickRoom
from safelight.pipeline.scheduling.selection import full_tick_seconds
from safelight.pipeline.scheduling.simulation import (
    AdmissionRule,
    FairPolicy,
    Policy,
    Queue,
    RulePolicy,
    Samples,
    SimulatedSample,
)

ROUND_TICKS = 5  # of the policy after TetriServe
MARGIN = 1.2  # of forecasts by which requests are refused, for what arrives later
MAX_IN_FLIGHT = 256  # images that the service lets in, here for each device
FULL_SECONDS = full_tick_seconds(CURVE)
SECONDS_PER_ROW = FULL_SECONDS / LIMITS.max_rows  # in full ticks

SortKey = Callable[[SimulatedSample, float], tuple[float, ...]]


def slack(sample: SimulatedSample, now: float) -> float:
    """Seconds that a sample may still wait, if all its ticks are full ones."""
    ticks_left = sample.workload.num_ticks - sample.step_index
    return sample.workload.deadline - now - FULL_SECONDS * ticks_left


def rows_of(sample: SimulatedSample) -> int:
    """The rows of a sample's next tick."""
    return sample.workload.rows[sample.step_index]


def work_left(sample: SimulatedSample) -> float:
    """The work of a sample's remaining ticks; all its ticks are alike."""
    workload = sample.workload
    return workload.work[0] * (workload.num_ticks - sample.step_index)


def fill(samples: Iterable[SimulatedSample]) -> list[SimulatedSample]:
    """As many samples as fit a tick, in their order; `samples` must not be empty."""
    room, selected = TickRoom(LIMITS, CURVE.best_work), list[SimulatedSample]()
    for sample in samples:
        if room.take(sample):
            selected.append(sample)
        if room.is_full:
            break
    return selected


def in_order_of(key: SortKey, admission: AdmissionRule | None = None) -> Policy:
    """The policy that fills ticks in the order of a key."""

    def rule(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        return fill(sorted((*running, *queue), key=lambda sample: key(sample, now)))

    return RulePolicy(rule, admission)


class RoundPolicy:
    """Rounds of some ticks; in each run those that would otherwise be late, after TetriServe.

    First come samples that would miss their deadline if they were left out of this round, those with the
    fewest rows and the least work before others; then those with time left, by deadline; then those that are
    late anyway. Within a round only places that become free are filled.
    """

    def __init__(self) -> None:
        self._batch: Samples = ()
        self._ticks = 0  # of this round

    def admits(self, sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
        return True

    def select(self, running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        duration = ROUND_TICKS * FULL_SECONDS

        def key(sample: SimulatedSample) -> tuple[float, float, float]:
            spare = slack(sample, now)
            if 0 <= spare < duration:
                return 0.0, rows_of(sample), sample.seconds_left
            return (1.0, sample.workload.deadline, 0.0) if spare >= duration else (2.0, -spare, 0.0)

        if self._ticks >= ROUND_TICKS:
            self._ticks, self._batch = 0, ()
        present = set(map(id, running))
        batch = [sample for sample in self._batch if id(sample) in present]
        ids = set(map(id, batch))
        others = sorted((sample for sample in (*running, *queue) if id(sample) not in ids), key=key)
        self._batch = fill((*batch, *others))
        return list(self._batch)

    def start_ticks(self, selected: Samples, running: Samples, queue: Queue, ticks: int) -> None:
        self._ticks += ticks


def pause_for_urgent(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
    """Samples pause at step boundaries for others with less slack, after GENSERVE.

    A running sample is paused only for one that would be late by waiting for it; the one with the most slack
    first. A batch holds no more than its most urgent sample can bear, unless that one is late in any batch.
    """

    def key(sample: SimulatedSample) -> tuple[bool, bool, float]:
        spare = slack(sample, now)
        is_urgent = spare < FULL_SECONDS * sample.workload.num_ticks
        return spare < 0, not (is_urgent or sample.step_index > 0), abs(spare)

    urgent, *others = fill(sorted((*running, *queue), key=key))
    ticks_left = urgent.workload.num_ticks - urgent.step_index
    bearable = (urgent.workload.deadline - now) / ticks_left
    alone = urgent.seconds_left / ticks_left
    if bearable < alone:
        return [urgent, *others]
    batch, rows = [urgent], rows_of(urgent)
    for sample in others:
        if CURVE.seconds_for(rows + rows_of(sample)) <= max(bearable, alone):
            batch.append(sample)
            rows += rows_of(sample)
    return batch


def has_room(sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
    """The admission that the service has without promises: by the number of images."""
    return len(running) + len(queue) < MAX_IN_FLIGHT


def is_early_enough(sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
    """Whether a sample is done by its deadline if all that is due before it goes first, in full ticks."""
    deadline = sample.workload.deadline
    ahead = [other for other in (*running, *queue) if other.workload.deadline <= deadline]
    seconds = SECONDS_PER_ROW * sum(map(work_left, (*ahead, sample)))
    return _is_in_time(sample, seconds, (*running, *queue, sample), now)


def keeps_deadline(sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> bool:
    """Whether a forecast of fluid fair shares says that a sample is done by its deadline.

    Until a caller's work W is done, in full ticks, each other caller gets at most as much as it, in
    proportion to the weights r: the sum of min(W_m, W r_m / r). A sample takes no less than its ticks one
    after another.
    """
    samples = (*running, *queue, sample)
    work: dict[Share, float] = defaultdict(float)
    for other in samples:
        work[other.workload.share] += work_left(other)
    fair = work[sample.workload.share] / sample.workload.share.weight
    seconds = SECONDS_PER_ROW * sum(min(part, fair * share.weight) for share, part in work.items())
    return _is_in_time(sample, seconds, samples, now)


def _is_in_time(sample: SimulatedSample, seconds: float, samples: Samples, now: float) -> bool:
    """Whether a sample that waits and runs for `seconds`, beside `samples`, is done by its deadline."""
    rows = min(sum(map(rows_of, samples)), LIMITS.max_rows)
    ticks = sample.workload.num_ticks * CURVE.seconds_for(rows)
    return now + max(MARGIN * seconds, ticks) <= sample.workload.deadline


POLICIES: dict[str, Callable[[], Policy]] = {
    "first come, first served": lambda: in_order_of(lambda sample, now: (sample.workload.arrived,)),
    "earliest deadline first": lambda: in_order_of(lambda sample, now: (sample.workload.deadline,)),
    "shortest remaining work": lambda: in_order_of(lambda sample, now: (work_left(sample),)),
    "after TetriServe": RoundPolicy,
    "after GENSERVE": lambda: RulePolicy(pause_for_urgent),
    "earliest deadline first, refusing what would be late": lambda: in_order_of(
        lambda sample, now: (sample.workload.deadline,), is_early_enough
    ),
    "fair shares": lambda: FairPolicy(LIMITS, CURVE, admission=has_room),
    "fair shares, refusing what would be late": lambda: FairPolicy(LIMITS, CURVE, admission=keeps_deadline),
}
