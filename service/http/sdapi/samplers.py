"""AUTOMATIC1111's names of samplers and noise schedules, and ours."""

from typing import Any

from safelight.pipeline.catalog.model_info import ModelInfo

# The names that AUTOMATIC1111 lists, and the solvers that they mean. The first of a solver is its name in
# answers. The SDE samplers of order 1 and 3 are drawn by the one of order 2, and ancestral DPM++ 2S without
# fresh noise: docs/sdapi.md.
SAMPLERS = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "sde_dpmpp_2m",
    "DPM++ SDE": "sde_dpmpp_2m",
    "DPM++ 3M SDE": "sde_dpmpp_2m",
    "DPM++ 2S a": "dpmpp_2s",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "Heun": "heun",
    "DPM2": "dpm_2s",
    "UniPC": "unipc_2",
    "DDIM": "ddim",
    "PLMS": "plms",
}
AUTOMATIC = "automatic"  # the schedule of the sampler or model


def list_samplers(model: ModelInfo) -> list[dict[str, Any]]:
    """The samplers of `model`: AUTOMATIC1111's names, then our solvers that it has no name for."""
    listed = {name: solver for name, solver in SAMPLERS.items() if solver in model.solvers}
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
    return next((name for name, known in SAMPLERS.items() if known == solver), solver)
