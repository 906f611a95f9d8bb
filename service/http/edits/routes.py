"""`POST /v1/images/edits`: images drawn from an image and a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.errors import MalformedBody, WrongContentType
from safelight.service.http.edits.fields import take_options
from safelight.service.http.edits.multipart import read_form
from safelight.service.http.edits.params import make_edits, make_upload, with_source_size
from safelight.service.http.edits.schema import edit_request_body
from safelight.service.http.edits.uploads import EditFields, split_fields
from safelight.service.http.openapi import GENERATION_ERRORS, image_request_body
from safelight.service.http.request_body import content_type, is_json, read_body, unless_gone
from safelight.service.http.schemas import ImageResponse
from safelight.service.http.translation import make_output, make_params, make_response, make_usage
from safelight.service.http.validation import parse_request
from safelight.service.messages import RequestContext
from safelight.service.settings import Settings
from safelight.service.telemetry.tracing import LiveSpan
from safelight.service.usage.records import RequestRecorder, record_request

if TYPE_CHECKING:
    from safelight.service.http.gateway import Gateway

FORM = "multipart/form-data"


def add_edit_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/edits",
        response_model=ImageResponse,
        responses=GENERATION_ERRORS,
        openapi_extra=edit_request_body(image_request_body(gateway.model)),
        summary="Draw images from an image and a text",
    )
    async def edit(request: Request) -> Response:
        # The body is parsed here and not by FastAPI, so that record_request also records malformed bodies.
        request.state.request_log["model"] = gateway.model.id
        request_id, parent_span = request.state.request_id, request.headers.get("traceparent")
        with (
            record_request(request_id, gateway.model.id, gateway.record) as record,
            gateway.tracing.span(
                "edit", parent_span, model=gateway.model.id, request_id=record.request_id
            ) as span,
        ):
            return await _edit(request, gateway, record, span)


async def _edit(request: Request, gateway: Gateway, record: RequestRecorder, span: LiveSpan) -> Response:
    """Draw the images of one request, and set their usage in `record`."""
    model = gateway.model
    parts = await read_edit_fields(request, gateway.settings)
    options, others = take_options(parts.others)
    image_request = parse_request(json.dumps(_typed(others)).encode())
    params, output = make_params(image_request, model), make_output(image_request)
    params = make_edits(params, model, options.strength, parts.mask is not None)
    upload = make_upload(parts.image, parts.mask, image_request, params[0])
    record.num_images = len(params)
    log = {"images": len(params), "steps": params[0].steps_taken}
    request.state.request_log |= log | ({"prompt": params[0].prompt} if gateway.settings.log_prompts else {})
    span.set(images=len(params), steps=params[0].steps_taken)
    context = RequestContext(record.id, span.traceparent, record.request_id)
    results = await unless_gone(request, gateway.dispatcher.generate(params, output, context, upload))
    record.image_usages = tuple(result.usage for result in results)
    params = with_source_size(params, results)
    usage = make_usage(results, params, model, record.seconds)
    request.state.request_log["queue_seconds"] = round(usage.safelight.queue_seconds, 4)
    response = make_response(results, params, output, usage)
    return Response(response.model_dump_json(), media_type="application/json")


async def read_edit_fields(request: Request, settings: Settings) -> EditFields:
    """The parts of a request's body, which is a form or JSON.

    Raises `WrongContentType`, `MalformedBody`, `InvalidRequest`, and what `read_body` raises.
    """
    kind = content_type(request)
    if kind != FORM and not is_json(kind):
        raise WrongContentType(f"The body must be a form ({FORM}) or JSON: name it in content-type.")
    body = await read_body(request, settings.max_upload_bytes, settings.body_seconds)
    if kind == FORM:
        return split_fields(await read_form(request.headers["content-type"], body))
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"The body is not valid JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise MalformedBody("The body must be a JSON object.")
    return split_fields(fields.items())


def _typed(fields: dict[str, object]) -> dict[str, object]:
    """The fields of a form with the numbers that their texts are."""
    return {name: _number(value) if name not in TEXT_FIELDS else value for name, value in fields.items()}


TEXT_FIELDS = ("prompt", "negative_prompt", "model", "size", "user")


def _number(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
