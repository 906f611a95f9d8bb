"""Annealed Langevin dynamics: many small steps at each noise level. Offline: hundreds of ticks a step."""

import math

from safelight.pipeline.diffusion.solvers.onestep import ddim_tick
from safelight.pipeline.diffusion.solvers.table import SolverGrid, Tick

INNER_STEPS = 100
STEP_SIZE = 0.1  # delta: the paper's epsilon over the square of its least sigma


def langevin(path: SolverGrid) -> list[Tick]:
    """Song and Ermon 2019 (arXiv:1907.05600), algorithm 1: `INNER_STEPS` ticks a noise level, one inner step a tick.

    x' = x + delta sigma^2 / 2 score + sqrt(delta) sigma z at each level of the grid, then one step to the last denoised mean
    (Jolicoeur-Martineau et al. 2021, arXiv:2009.05475, section 3.1). Defined where alpha = 1.
    """
    ticks = []
    for now, _ in path.steps:
        half = STEP_SIZE / 2  # score = (x0 - x) / sigma^2
        tick = Tick(
            now.t,
            now.timestep,
            *now.data,
            1.0 - half,
            (half, 0.0, 0.0, 0.0),
            c=math.sqrt(STEP_SIZE) * now.sigma,
        )
        ticks += [tick] * INNER_STEPS
    return [*ticks, ddim_tick(*path.steps[-1])]
