"""The parameters of edits: those of generations, and the strength."""

from collections.abc import Sequence
from dataclasses import replace

from safelight.pipeline.catalog.model_info import ModelInfo, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.params import EditParams, GenerationParams
from safelight.service.messages import DecodeResult

# Chosen by looking at edits of the embedded model: below 0.5 a prompt changes little, from 0.8 on little is
# left of the source. What a mask shows is usually to become something else.
STRENGTH, INPAINTING_STRENGTH = 0.6, 1.0


def make_edits(
    images: Sequence[GenerationParams], model: ModelInfo, strength: float | None, has_mask: bool
) -> list[GenerationParams]:
    """The parameters of edits that are otherwise like `images`.

    Args:
        images: As for generations; they differ in their index only.
        model: The served model.
        strength: 0 to 1; None for the default.
        has_mask: Whether only a part is redrawn.

    Raises:
        InvalidParams: The strength is out of range, or leaves too few steps for the solver.
    """
    if strength is None:
        strength = INPAINTING_STRENGTH if has_mask else STRENGTH
    edits = [replace(image, edit=EditParams(strength, has_mask)) for image in images]
    check_params(edits[0], model)
    plan_request(edits[0], model)
    return edits


def with_source_size(
    images: Sequence[GenerationParams], results: Sequence[DecodeResult]
) -> list[GenerationParams]:
    """`images` with the size that their source had in the end, which the request may have left open."""
    source = results[0].usage.source
    assert source is not None
    width, height = source.size
    return [replace(image, width=width, height=height) for image in images]
