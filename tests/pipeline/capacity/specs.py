"""Image specs for the capacity tests."""

from typing import Any

from safelight.pipeline.capacity.image_cost import ImageSpec, ModelProfile


def default_spec(profile: ModelProfile, **overrides: object) -> ImageSpec:
    """An image with the model's defaults, but for `overrides`."""
    defaults: dict[str, Any] = {
        "size": profile.native_size,
        "num_steps": profile.num_steps,
        "guidance_scale": profile.guidance_scale,
        "solver": profile.solver,
    }
    return ImageSpec(**(defaults | overrides))
