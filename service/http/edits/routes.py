"""`POST /v1/images/edits`: images drawn from an image and a text."""

import asyncio
import json
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.errors import WrongContentType
from safelight.service.http.edits.fields import take_options
from safelight.service.http.edits.multipart import read_form
from safelight.service.http.edits.params import make_edits, make_upload, with_source_size
from safelight.service.http.edits.schema import edit_request_body
from safelight.service.http.edits.uploads import EditFields, split_fields
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_requests import answer_images, read_image_request
from safelight.service.http.openapi import GENERATION_ERRORS, image_request_body
from safelight.service.http.reading.adjustments import adjustment
from safelight.service.http.reading.body import decompress, read_object
from safelight.service.http.request_body import content_type, is_json, read_body, unless_gone
from safelight.service.http.schemas import Adjustment, ImageResponse
from safelight.service.http.streaming import EVENT_STREAM, StreamedImages, StreamedRequest
from safelight.service.http.translation import make_output, make_params, make_response, make_usage
from safelight.service.messages import RequestContext, SourceReport
from safelight.service.settings import Settings
from safelight.service.telemetry.tracing import LiveSpan
from safelight.service.usage.records import RequestRecorder, record_request

FORM = "multipart/form-data"
TEXT_FIELDS = ("prompt", "negative_prompt", "model", "size", "user", "safety_identifier")


def add_edit_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/edits",
        response_model=ImageResponse,
        responses={200: {"content": EVENT_STREAM}, **GENERATION_ERRORS},
        openapi_extra=edit_request_body(image_request_body(gateway.names, gateway.settings.strict)),
        summary="Draw images from an image and a text",
    )
    async def edit(request: Request) -> Response:
        # The body is parsed here and not by FastAPI, so that record_request also records malformed bodies.
        request.state.request_log["model"] = gateway.model.id
        request_id, parent_span = request.state.request_id, request.headers.get("traceparent")
        with ExitStack() as open_request:
            record = open_request.enter_context(record_request(request_id, gateway.model.id, gateway.record))
            span = open_request.enter_context(
                gateway.tracing.span(
                    "edit", parent_span, model=gateway.model.id, request_id=record.request_id
                )
            )
            return await _edit(request, gateway, record, span, open_request)


async def _edit(
    request: Request, gateway: Gateway, record: RequestRecorder, span: LiveSpan, open_request: ExitStack
) -> Response:
    """Draw the images of one request, and set their usage in `record`.

    Args:
        request: The request.
        gateway: The gateway.
        record: The request's.
        span: The request's.
        open_request: Closes both; a streamed answer does so after its last event.
    """
    model = gateway.model
    parts = await read_edit_fields(request, gateway.settings)
    options, others = take_options(parts.others)
    reading = read_image_request(request, gateway, others, record)
    image_request = reading.request
    params, output = make_params(image_request, model), make_output(image_request)
    params = make_edits(params, model, options.strength, parts.mask is not None)
    upload = make_upload(parts.image, parts.mask, image_request, params[0])
    record.num_images = len(params)
    log = {"images": len(params), "steps": params[0].steps_taken}
    request.state.request_log |= log | ({"prompt": params[0].prompt} if gateway.settings.log_prompts else {})
    span.set(images=len(params), steps=params[0].steps_taken)
    context = RequestContext(record.id, span.traceparent, record.request_id)
    if image_request.stream:
        streamed = StreamedRequest(request, record, open_request, params, output, model, reading, upload)
        return StreamedImages(streamed, gateway.dispatcher, context)
    results = await unless_gone(request, gateway.dispatcher.generate(params, output, context, upload))
    params = with_source_size(params, results)
    adjustments = (*reading.adjustments, *source_adjustments(results[0].usage.source))
    reading = replace(reading, adjustments=adjustments)
    usage = make_usage(results, params, model, record.seconds, adjustments)
    request.state.request_log["queue_seconds"] = round(usage.safelight.queue_seconds, 4)
    response = make_response(results, params, output, usage, model)
    record.image_usages = tuple(result.usage for result in results)
    return answer_images(response, reading)


def source_adjustments(source: SourceReport | None) -> list[Adjustment]:
    """What the answer says about an image that had another size."""
    if source is None or source.uploaded == source.size:
        return []
    uploaded, size = (f"{width}x{height}" for width, height in (source.uploaded, source.size))
    left, top, right, bottom = source.crop
    is_whole = source.crop == (0, 0, *source.uploaded)
    part = "" if is_whole else f"cut to the part from {left},{top} to {right},{bottom} and "
    return [adjustment("image", uploaded, size, f"{part}resampled to a size of the model")]


async def read_edit_fields(request: Request, settings: Settings) -> EditFields:
    """The parts of a request's body, which is a form or JSON.

    Raises `WrongContentType`, `MalformedBody`, `InvalidRequest`, and what `read_body` raises.
    """
    kind = content_type(request)
    if kind != FORM and not is_json(kind):
        raise WrongContentType(f"The body must be a form ({FORM}) or JSON: name it in content-type.")
    body = await read_body(request, settings.max_upload_bytes, settings.body_seconds)
    if coding := request.headers.get("content-encoding", ""):
        body = await asyncio.to_thread(decompress, body, coding, settings.max_upload_bytes)
    if kind == FORM:
        parts = split_fields(await read_form(request.headers["content-type"], body))
        return replace(parts, others=_typed(parts.others))
    return split_fields(read_object(body, request.headers["content-type"]).items())


def _typed(fields: dict[str, object]) -> dict[str, object]:
    """The fields of a form with the numbers that their texts are."""
    return {name: _number(value) if name not in TEXT_FIELDS else value for name, value in fields.items()}


def _number(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
