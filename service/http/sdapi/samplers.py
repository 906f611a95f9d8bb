"""AUTOMATIC1111's names of samplers and noise schedules, and ours."""

from collections.abc import Collection
from typing import Any

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.http.reading.samplers import find_sampler

# The names that AUTOMATIC1111 lists. The first of a solver is its name in answers. The SDE samplers of order
# 1 and 3 are drawn by the one of order 2, and ancestral DPM++ 2S without fresh noise: docs/sdapi.md.
NAMES = (
    "DPM++ 2M", "DPM++ 2M SDE", "DPM++ SDE", "DPM++ 3M SDE", "DPM++ 2S a", "Euler a", "Euler", "Heun", "DPM2",
    "UniPC", "DDIM", "PLMS",
)  # fmt: skip
AUTOMATIC = "automatic"  # the schedule of the sampler or model


def solvers_by_name(solvers: Collection[str]) -> dict[str, str]:
    """Those of `solvers` that AUTOMATIC1111 has names for, by these."""
    samplers = {name: find_sampler(name, solvers) for name in NAMES}
    return {name: sampler[0] for name, sampler in samplers.items() if sampler is not None}


def list_samplers(model: ModelInfo) -> list[dict[str, Any]]:
    """The samplers of `model`: AUTOMATIC1111's names, then our solvers that it has no name for."""
    listed = solvers_by_name(model.solvers)
    others = {solver: solver for solver in model.solvers if solver not in listed.values()}
    return [{"name": name, "aliases": [solver], "options": {}} for name, solver in (listed | others).items()]


def list_schedulers(model: ModelInfo) -> list[dict[str, Any]]:
    """The noise schedules of `model`."""
    return [
        {
            "name": name,
            "label": name.replace("_", " ").capitalize(),
            "aliases": [],
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for name in (AUTOMATIC, *model.spacings)
    ]


def sampler_name(solver: str) -> str:
    """AUTOMATIC1111's name of a solver; one that it does not have keeps ours."""
    return next(iter(solvers_by_name([solver])), solver)
