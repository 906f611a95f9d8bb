"""Solvers as planners: each turns a schedule and a grid into a plan, a table of ticks."""

from safelight.pipeline.diffusion.solvers.execute import execute_plan
from safelight.pipeline.diffusion.solvers.registry import (
    ALIASES,
    SERVED,
    SOLVERS,
    Solver,
    canonical_name,
    make_plan,
)
from safelight.pipeline.diffusion.solvers.table import (
    COLUMNS,
    READ,
    STATE,
    GridPoint,
    Plan,
    SolverGrid,
    Tick,
)

__all__ = [
    "ALIASES",
    "COLUMNS",
    "READ",
    "SERVED",
    "SOLVERS",
    "STATE",
    "GridPoint",
    "Plan",
    "Solver",
    "SolverGrid",
    "Tick",
    "canonical_name",
    "execute_plan",
    "make_plan",
]
