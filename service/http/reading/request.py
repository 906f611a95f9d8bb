"""Reads the fields of a request for images, strictly or as their client means them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.pipeline.catalog.model_info import MAX_STEPS, NO_GUIDANCE, ModelInfo
from safelight.pipeline.errors import InvalidParams
from safelight.service.errors import InvalidRequest
from safelight.service.http.reading.draft import Draft
from safelight.service.http.reading.fields import WITHOUT_STREAM, read_fields
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.schemas import Adjustment, ImageRequest
from safelight.service.http.translation import make_params
from safelight.service.http.validation import NO_NAMES, validate_fields

STRICT_HEADER = "x-safelight-strict"
MOST_NEEDED = 4  # steps that a solver may need at least
TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A valid request, the model that it asks for, and what was read in another way than it was written."""

    request: ImageRequest
    model: ModelInfo
    adjustments: tuple[Adjustment, ...] = ()
    is_strict: bool = False


def read_request(fields: Mapping[str, object], names: ModelNames, is_strict: bool) -> ReadRequest:
    """The request that `fields` are; if `is_strict`, each must be a field and valid as it is.

    Raises `InvalidRequest`, `UnknownField` or `ModelNotFound` for the first fault.
    """
    if is_strict:
        request = _validate(fields)
        if request.partial_images and not request.stream:
            raise InvalidRequest(f"partial_images: {WITHOUT_STREAM}; leave it out.", "partial_images")
        request, model = _with_model_id(request, names)
        return ReadRequest(request, model, is_strict=True)
    draft = read_fields(fields, names)
    request, model = _with_model_id(_validate(draft.values, draft.sent_names), names)
    request = _as_distilled(_with_enough_steps(request, draft), draft)
    return ReadRequest(request, model, tuple(draft.adjustments))


def _validate(fields: Mapping[str, object], sent_names: Mapping[str, str] = NO_NAMES) -> ImageRequest:
    request = validate_fields(fields, sent_names)
    if request.stream and request.response_format == "url":
        raise InvalidRequest(
            "response_format: links are not streamed; allowed with stream: b64_json.", "response_format"
        )
    return request


def _with_enough_steps(request: ImageRequest, draft: Draft) -> ImageRequest:
    """`request` with as many steps as its solver and spacing need at least, if it asks for very few."""
    steps = request.num_inference_steps
    if steps is None or steps > MOST_NEEDED:
        return request
    for enough in range(steps, MOST_NEEDED + 1):
        candidate = request.model_copy(update={"num_inference_steps": enough})
        with contextlib.suppress(InvalidParams):
            make_params(candidate, draft.model)
            break
    else:
        return request  # which has another fault
    if enough > steps:
        note = "the fewest steps that the solver and the spacing allow"
        draft.adjust(draft.sent_names["num_inference_steps"], steps, enough, note)
    return candidate


def _as_distilled(request: ImageRequest, draft: Draft) -> ImageRequest:
    """`request` as a few-step student can serve it: with few enough steps, and without a guidance scale.

    Clients send the steps and the scale that other models need.
    """
    changes: dict[str, object] = {}
    model, steps, scale = draft.model, request.num_inference_steps, request.guidance_scale
    if steps is not None and model.max_steps < steps <= MAX_STEPS:
        changes["num_inference_steps"] = model.max_steps
        note = "the most steps that the model learned"
        draft.adjust(draft.sent_names["num_inference_steps"], steps, model.max_steps, note)
    if scale is not None and model.has_distilled_guidance and scale > NO_GUIDANCE:
        changes["guidance_scale"] = None
        note = "without effect: the model learned its guidance"
        draft.drop(draft.sent_names["guidance_scale"], scale, note)
    return request.model_copy(update=changes)


def _with_model_id(request: ImageRequest, names: ModelNames) -> tuple[ImageRequest, ModelInfo]:
    """`request` with its model's id, and the model."""
    if request.model is None:
        return request, names.model
    model = names.find(request.model, is_strict=True)
    return request.model_copy(update={"model": model.id}), model


def asks_for_strict(header: str | None) -> bool:
    """Whether the request header `x-safelight-strict` says so."""
    return (header or "").strip().lower() in TRUE
