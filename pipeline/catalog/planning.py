"""What a model's schedule makes of a request: its plan, which also says what the image will take. No torch here."""

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.solvers import Plan, plan
from safelight.pipeline.params import GenerationParams


def plan_request(params: GenerationParams, model: ModelInfo) -> Plan:
    """The ticks of one image under `model`. Raises `InvalidParams` for what the solver or the spacing cannot do."""
    return plan(
        params.solver,
        model.schedule,
        model.prediction,
        params.num_steps,
        spacing=params.timestep_spacing,
        eta=params.eta,
    )
