"""Annealed Langevin dynamics: many small steps at each noise level. Offline: a hundred ticks per level."""

import math

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import SolverGrid, Tick

INNER_STEPS = 100
STEP_SIZE = 0.1  # delta: the paper's epsilon over the square of its smallest sigma


def langevin(grid: SolverGrid) -> list[Tick]:
    """Annealed Langevin dynamics (Song and Ermon 2019, arXiv:1907.05600, algorithm 1).

    `INNER_STEPS` ticks x' = x + delta sigma^2 / 2 score + sqrt(delta) sigma z at each noise level of the
    grid, then one step to the denoised mean (Jolicoeur-Martineau et al. 2021, arXiv:2009.05475, section 3.1).
    Defined where alpha = 1.
    """
    ticks = []
    for cur, _ in grid.steps:
        half = STEP_SIZE / 2  # score = (x0 - x) / sigma^2
        tick = Tick(
            cur.t,
            cur.timestep,
            *cur.data,
            1.0 - half,
            (half, 0.0, 0.0, 0.0),
            c=math.sqrt(STEP_SIZE) * cur.sigma,
        )
        ticks += [tick] * INNER_STEPS
    return [*ticks, ddim_tick(*grid.steps[-1])]
