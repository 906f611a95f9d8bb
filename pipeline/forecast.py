"""When each sample will be done: the batcher's own rule, run ahead on the cost curve, with company like that of late."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle

from pipeline.batcher import Limits, Standing, choose
from pipeline.curve import CostCurve
from pipeline.load import Load

STRIDE = 4  # ticks between two choices: the real batcher chooses at each
FEWEST = 5  # arrivals from which a rate is told
LATE = 16  # arrivals that are company of late
MOST_COMING = 200  # who comes after them hardly changes what those who are here are told


@dataclass(slots=True, eq=False)
class Ghost:
    """A sample's standing, to be moved ahead; `number` is None for one that has yet to come."""

    number: int | None
    load: Load
    step_index: int


def finish_times(standings: Iterable[Standing], now: float, limits: Limits, curve: CostCurve, lately: Sequence[Load] = ()) -> list[float]:
    """For each of `standings`, the seconds from `now` until it leaves.

    Others will come, and some go first: as many, and such, as did `lately` (in order of arrival). Without them nobody comes.
    """
    ghosts = [Ghost(number, standing.load, standing.step_index) for number, standing in enumerate(standings)]
    times = [0.0] * len(ghosts)
    left = sum(ghost.step_index < ghost.load.num_ticks for ghost in ghosts)
    here = [ghost for ghost in ghosts if ghost.step_index < ghost.load.num_ticks]
    coming = _coming(lately, now)
    following = next(coming, None)
    moment = now
    while left:
        while following is not None and following.load.arrived <= moment:
            here.append(following)
            following = next(coming, None)
        chosen = choose(here, moment, limits, curve)
        ticks = min(STRIDE, *(ghost.load.num_ticks - ghost.step_index for ghost in chosen))
        moment += ticks * curve.seconds_for(sum(ghost.load.work[ghost.step_index] for ghost in chosen))
        for ghost in chosen:
            ghost.step_index += ticks
            if ghost.step_index == ghost.load.num_ticks:
                here.remove(ghost)
                if ghost.number is not None:
                    times[ghost.number] = moment - now
                    left -= 1
    return times


def _coming(lately: Sequence[Load], now: float) -> Iterator[Ghost]:
    """Samples like those that came `lately`, at their mean distance."""
    seconds = lately[-1].arrived - lately[0].arrived if len(lately) >= FEWEST else 0.0
    if not seconds > 0.0:
        return
    distance = seconds / (len(lately) - 1)
    for number, load in zip(count(1), cycle(lately), strict=False):
        if number > MOST_COMING:
            return
        yield Ghost(None, replace(load, arrived=now + number * distance, deadline=math.inf), 0)
