"""The plan of a request under a served model, which also gives its cost. Imports no torch."""

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.params import GenerationParams


def plan_request(params: GenerationParams, model: ModelInfo) -> Plan:
    """The plan of one image under `model`; `InvalidParams` if solver or spacing do not allow it."""
    return make_plan(
        params.solver,
        model.schedule,
        model.prediction,
        params.num_steps,
        spacing=params.timestep_spacing,
        eta=params.eta,
    )
