"""When each sample will be done: the batcher's own rule, run ahead on the cost curve, with company like that of late."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle

from safelight.pipeline.scheduling.batcher import Limits, Schedulable
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import WaitingQueue, select_next_batch
from safelight.pipeline.scheduling.workload import SampleWorkload

STRIDE = 4  # ticks between two choices: the real batcher chooses at each
MIN_ARRIVALS = 5  # arrivals from which a rate is told
RECENT_ARRIVALS = 16  # arrivals that are company of late
SAME_REQUEST_SECONDS = (
    0.01  # seconds within which samples came at once: the images of one request say nothing of a rate
)
EXTRAPOLATION = 4.0  # for how many times as long as others were seen to come they are taken to go on


@dataclass(slots=True, eq=False)
class ForecastSample:
    """A sample's standing, to be moved ahead; `number` is None for one that has yet to come."""

    number: int | None
    workload: SampleWorkload
    step_index: int


def finish_times(
    begun: Iterable[Schedulable],
    waiting: Iterable[Schedulable],
    now: float,
    limits: Limits,
    curve: CostCurve,
    recent_arrivals: Sequence[SampleWorkload] = (),
) -> list[float]:
    """For each who has `begun`, then for each who is `waiting`, the seconds from `now` until it leaves.

    Others will come, and some go first: as many, and such, as did `recent_arrivals` (in order of arrival). Without them nobody comes.
    """
    numbers = count()
    here = [ForecastSample(next(numbers), standing.workload, standing.step_index) for standing in begun]
    queue = WaitingQueue[ForecastSample](curve.slowdown)
    for standing in waiting:
        queue.add(ForecastSample(next(numbers), standing.workload, 0))
    times = [0.0] * next(numbers)
    here = [ghost for ghost in here if ghost.step_index < ghost.workload.num_ticks]
    left = len(here) + len(queue)
    coming = _coming(recent_arrivals, now)
    following = next(coming, None)
    moment = now
    while left:
        while following is not None and following.workload.arrived <= moment:
            queue.add(following)
            following = next(coming, None)
        chosen = select_next_batch(here, queue, moment, limits, curve)
        ticks = min(STRIDE, *(ghost.workload.num_ticks - ghost.step_index for ghost in chosen))
        moment += ticks * curve.seconds_for(sum(ghost.workload.work[ghost.step_index] for ghost in chosen))
        for ghost in chosen:
            if ghost.step_index == 0:
                queue.remove(ghost)
                here.append(ghost)
            ghost.step_index += ticks
            if ghost.step_index == ghost.workload.num_ticks:
                here.remove(ghost)
                if ghost.number is not None:
                    times[ghost.number] = moment - now
                    left -= 1
    return times


def _coming(recent_arrivals: Sequence[SampleWorkload], now: float) -> Iterator[ForecastSample]:
    """Samples like those that came `recent_arrivals`, at their mean distance; a silence since the last of them counts as well."""
    times = [load.arrived for load in recent_arrivals]
    moments = [
        time
        for time, before in zip(times, [-math.inf, *times], strict=False)
        if time - before > SAME_REQUEST_SECONDS
    ]
    if len(moments) < MIN_ARRIVALS:
        return
    seconds = max(now, times[-1]) - times[0]
    distance = seconds / sum(time > times[0] + SAME_REQUEST_SECONDS for time in times)
    for number, load in zip(
        range(1, int(EXTRAPOLATION * seconds / distance) + 1), cycle(recent_arrivals), strict=False
    ):
        yield ForecastSample(None, replace(load, arrived=now + number * distance, deadline=math.inf), 0)
