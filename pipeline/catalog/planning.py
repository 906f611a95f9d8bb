"""The plan of a request under a served model, which also gives its cost. Imports no torch."""

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.diffusion.spacing import make_grid
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams


def plan_request(params: GenerationParams, model: ModelInfo) -> Plan:
    """The plan of one image under `model`; `InvalidParams` if solver or spacing do not allow it.

    An edit takes the last steps of the same grid. Its plan is one of their own, so a multistep solver starts
    there without history.
    """
    if params.steps_taken < params.num_steps:
        return _plan_last_steps(params, model)
    return make_plan(
        params.solver,
        model.schedule,
        model.prediction,
        params.num_steps,
        spacing=params.timestep_spacing,
        eta=params.eta,
    )


def _plan_last_steps(params: GenerationParams, model: ModelInfo) -> Plan:
    """The plan over the last `steps_taken` steps of the grid."""
    times = make_grid(model.schedule, params.num_steps, params.timestep_spacing)
    try:
        return make_plan(
            params.solver,
            model.schedule,
            model.prediction,
            params.steps_taken,
            eta=params.eta,
            grid=times[-params.steps_taken - 1 :],
        )
    except InvalidParams as error:
        if error.param != "num_steps":
            raise
        raise InvalidParams(
            "strength",
            f"strength leaves {params.steps_taken} of {params.num_steps} steps, too few for {params.solver}: "
            "give it more",
        ) from None
