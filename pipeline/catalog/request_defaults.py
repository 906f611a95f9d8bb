"""The operator's defaults of a request, in place of the family's. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Any

from safelight.pipeline.catalog.model_info import ModelInfo, applied_guidance_scale, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.params import GenerationParams


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """What a request gets that does not say; None leaves it to the family."""

    num_steps: int | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    size: tuple[int, int] | None = None  # (width, height) in pixels

    def changes(self) -> dict[str, Any]:
        """The defaults that are given, by their names in `ModelInfo` and `ModelProfile`.

        A guidance scale is the one that a request for it gets, so that no measurement counts another.
        """
        guidance_scale = self.guidance_scale
        values = {
            "num_steps": self.num_steps,
            "guidance_scale": None if guidance_scale is None else applied_guidance_scale(guidance_scale),
            "solver": self.solver,
            "request_size": self.size,
        }
        return {name: value for name, value in values.items() if value is not None}


def with_defaults(model: ModelInfo, defaults: RequestDefaults) -> ModelInfo:
    """`model` with `defaults`. Raises `InvalidParams` for one that the model cannot serve."""
    result = replace(model, **defaults.changes())
    width, height = result.default_size
    params = GenerationParams(
        prompt="0" if model.labels else "a prompt",
        negative_prompt="",
        width=width,
        height=height,
        num_steps=result.num_steps,
        guidance_scale=result.guidance_scale,
        solver=result.solver,
        seed=0,
        timestep_spacing=result.timestep_spacing,
    )
    check_params(params, result)
    plan_request(params, result)
    return result
