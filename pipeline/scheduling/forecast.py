"""When each sample will be done: the batcher's own rule, run ahead on the cost curve, with company like that of late."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle

from safelight.pipeline.scheduling.batcher import Limits, Standing
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.queue import WaitingQueue, choose_next
from safelight.pipeline.scheduling.workload import Load

STRIDE = 4  # ticks between two choices: the real batcher chooses at each
FEWEST = 5  # arrivals from which a rate is told
LATE = 16  # arrivals that are company of late
TOGETHER = 0.01  # seconds within which samples came at once: the images of one request say nothing of a rate
HORIZON = 4.0  # for how many times as long as others were seen to come they are taken to go on


@dataclass(slots=True, eq=False)
class Ghost:
    """A sample's standing, to be moved ahead; `number` is None for one that has yet to come."""

    number: int | None
    load: Load
    step_index: int


def finish_times(
    begun: Iterable[Standing],
    waiting: Iterable[Standing],
    now: float,
    limits: Limits,
    curve: CostCurve,
    lately: Sequence[Load] = (),
) -> list[float]:
    """For each who has `begun`, then for each who is `waiting`, the seconds from `now` until it leaves.

    Others will come, and some go first: as many, and such, as did `lately` (in order of arrival). Without them nobody comes.
    """
    numbers = count()
    here = [Ghost(next(numbers), standing.load, standing.step_index) for standing in begun]
    queue = WaitingQueue[Ghost](curve.factor)
    for standing in waiting:
        queue.add(Ghost(next(numbers), standing.load, 0))
    times = [0.0] * next(numbers)
    here = [ghost for ghost in here if ghost.step_index < ghost.load.num_ticks]
    left = len(here) + len(queue)
    coming = _coming(lately, now)
    following = next(coming, None)
    moment = now
    while left:
        while following is not None and following.load.arrived <= moment:
            queue.add(following)
            following = next(coming, None)
        chosen = choose_next(here, queue, moment, limits, curve)
        ticks = min(STRIDE, *(ghost.load.num_ticks - ghost.step_index for ghost in chosen))
        moment += ticks * curve.seconds_for(sum(ghost.load.work[ghost.step_index] for ghost in chosen))
        for ghost in chosen:
            if ghost.step_index == 0:
                queue.remove(ghost)
                here.append(ghost)
            ghost.step_index += ticks
            if ghost.step_index == ghost.load.num_ticks:
                here.remove(ghost)
                if ghost.number is not None:
                    times[ghost.number] = moment - now
                    left -= 1
    return times


def _coming(lately: Sequence[Load], now: float) -> Iterator[Ghost]:
    """Samples like those that came `lately`, at their mean distance; a silence since the last of them counts as well."""
    times = [load.arrived for load in lately]
    moments = [
        time for time, before in zip(times, [-math.inf, *times], strict=False) if time - before > TOGETHER
    ]
    if len(moments) < FEWEST:
        return
    seconds = max(now, times[-1]) - times[0]
    distance = seconds / sum(time > times[0] + TOGETHER for time in times)
    for number, load in zip(range(1, int(HORIZON * seconds / distance) + 1), cycle(lately), strict=False):
        yield Ghost(None, replace(load, arrived=now + number * distance, deadline=math.inf), 0)
