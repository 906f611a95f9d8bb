"""When each sample will be done, if nobody else comes: the batcher's own rule, run ahead on the cost curve."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.batcher import Limits, Standing, choose
from pipeline.curve import CostCurve
from pipeline.load import Load

STRIDE = 4  # ticks between two choices: the real batcher chooses at each


@dataclass(slots=True, eq=False)
class Ghost:
    """A sample's standing, to be moved ahead."""

    number: int
    load: Load
    step_index: int


def finish_times(standings: Iterable[Standing], now: float, limits: Limits, curve: CostCurve) -> list[float]:
    """For each of `standings`, the seconds from `now` until it leaves."""
    ghosts = [Ghost(number, standing.load, standing.step_index) for number, standing in enumerate(standings)]
    times = [0.0] * len(ghosts)
    here = [ghost for ghost in ghosts if ghost.step_index < ghost.load.num_ticks]
    elapsed = 0.0
    while here:
        chosen = choose(here, now + elapsed, limits, curve)
        ticks = min(STRIDE, *(ghost.load.num_ticks - ghost.step_index for ghost in chosen))
        elapsed += ticks * curve.seconds_for(sum(ghost.load.work[ghost.step_index] for ghost in chosen))
        for ghost in chosen:
            ghost.step_index += ticks
            if ghost.step_index == ghost.load.num_ticks:
                times[ghost.number] = elapsed
                here.remove(ghost)
    return times
