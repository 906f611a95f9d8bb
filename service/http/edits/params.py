"""The parameters of edits: those of generations, and the strength."""

from collections.abc import Sequence
from dataclasses import replace

from safelight.pipeline.catalog.model_info import ModelInfo, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import EditParams, GenerationParams
from safelight.service.http.reading.adjustments import adjustment
from safelight.service.http.reading.request import MOST_NEEDED
from safelight.service.http.schemas import Adjustment, ImageRequest
from safelight.service.messages import DecodeResult, SourceReport, Upload

# Chosen by looking at edits of the embedded model: below 0.4 a prompt changes little, from 0.8 on little is
# left of the source. What a mask shows is usually to become something else.
STRENGTH, INPAINTING_STRENGTH = 0.6, 1.0


def make_edits(
    images: Sequence[GenerationParams],
    model: ModelInfo,
    strength: float | None,
    has_mask: bool,
    is_strict: bool = False,
) -> list[GenerationParams]:
    """The parameters of edits that are otherwise like `images`.

    Args:
        images: As for generations; they differ in their index only.
        model: The served model.
        strength: 0 to 1; None for the default. One that leaves too few steps for the solver is raised.
        has_mask: Whether only a part is redrawn.
        is_strict: Whether it is refused instead.

    Raises:
        InvalidParams: The strength is out of range, or leaves too few steps for the solver.
    """
    if strength is None:
        strength = INPAINTING_STRENGTH if has_mask else STRENGTH
    if not is_strict:
        strength = _with_enough_steps(images[0], model, EditParams(strength, has_mask))
    edits = [replace(image, edit=EditParams(strength, has_mask)) for image in images]
    check_params(edits[0], model)
    plan_request(edits[0], model)
    return edits


def _with_enough_steps(image: GenerationParams, model: ModelInfo, edit: EditParams) -> float:
    """The strength of `edit`, or the least that leaves the solver the steps that it needs."""
    for steps in range(min(image.num_steps, MOST_NEEDED) + 1):
        strength = max(edit.strength, steps / image.num_steps)
        try:
            plan_request(replace(image, edit=replace(edit, strength=strength)), model)
        except InvalidParams as error:
            if error.param != "strength":
                break
        else:
            return strength
    return edit.strength  # which has another fault


def strength_adjustments(strength: float | None, edit: EditParams | None) -> tuple[Adjustment, ...]:
    """What the answer says about a strength that was raised to that of `edit`."""
    if edit is None or strength in (None, edit.strength):
        return ()
    return (adjustment("strength", strength, edit.strength, "the least that leaves the solver enough steps"),)


def with_source_size(
    images: Sequence[GenerationParams], results: Sequence[DecodeResult]
) -> list[GenerationParams]:
    """`images` with the size of their source, which the request may have left open; if they have one."""
    source = results[0].usage.source
    if source is None:
        return list(images)
    width, height = source.size
    return [replace(image, width=width, height=height) for image in images]


def make_upload(
    image: bytes, mask: bytes | None, request: ImageRequest, model: ModelInfo, params: GenerationParams
) -> Upload:
    """The files of a request for the stages.

    Args:
        image: The image that is edited.
        mask: Where it is redrawn.
        request: Says whether the size is open; then it follows the image.
        model: Has the sizes among which it is then chosen.
        params: Of an image of the request, with its size.
    """
    is_open = request.size in (None, "auto")
    return Upload(image, mask, None if is_open else (params.width, params.height), model.sizes)


def source_adjustments(source: SourceReport | None) -> list[Adjustment]:
    """What the answer says about an image that had another size."""
    if source is None or source.uploaded == source.size:
        return []
    uploaded, size = (f"{width}x{height}" for width, height in (source.uploaded, source.size))
    left, top, right, bottom = source.crop
    is_whole = source.crop == (0, 0, *source.uploaded)
    part = "" if is_whole else f"cut to the part from {left},{top} to {right},{bottom} and "
    return [adjustment("image", uploaded, size, f"{part}resampled to a size of the model")]
