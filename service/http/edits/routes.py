"""`POST /v1/images/edits`: images drawn from an image and a text."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.errors import WrongContentType
from safelight.service.http.edits.fields import take_options
from safelight.service.http.edits.multipart import read_form
from safelight.service.http.edits.params import make_edits, make_upload, strength_adjustments
from safelight.service.http.edits.schema import edit_request_body
from safelight.service.http.edits.uploads import EditFields, split_fields
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import Exchange, ImagePlan, open_exchange, plan_images
from safelight.service.http.image_requests import read_image_request
from safelight.service.http.jobs.submission import ACCEPTED, SentContent, answer_request
from safelight.service.http.openapi import GENERATION_ERRORS, image_request_body
from safelight.service.http.public_url import base_url
from safelight.service.http.reading.body import decompress, read_object
from safelight.service.http.reading.request import ReadRequest
from safelight.service.http.request_body import content_type, is_json, read_body
from safelight.service.http.schemas import Adjustment, ImageResponse
from safelight.service.http.streaming import EVENT_STREAM
from safelight.service.jobs.job import EDIT
from safelight.service.settings import Settings

FORM = "multipart/form-data"
TEXT_FIELDS = ("prompt", "negative_prompt", "model", "size", "user", "safety_identifier")


def add_edit_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/edits",
        response_model=ImageResponse,
        responses={200: {"content": EVENT_STREAM}, 202: ACCEPTED, **GENERATION_ERRORS},
        openapi_extra=gateway.openapi_extras.add(
            lambda: edit_request_body(image_request_body(gateway.names, gateway.settings.strict))
        ),
        summary="Draw images from an image and a text",
    )
    async def edit(request: Request) -> Response:
        # The body is parsed here and not by FastAPI, so that open_exchange also records malformed bodies.
        with open_exchange(request, gateway, base_url(request, gateway.settings), "edit") as exchange:
            return await _edit(request, exchange)


async def _edit(request: Request, exchange: Exchange) -> Response:
    """Answer one request for edits."""
    gateway = exchange.gateway
    parts = await read_edit_fields(request, gateway.settings)

    def read(fields: Mapping[str, object], adjustments: tuple[Adjustment, ...]) -> ReadRequest:
        return read_image_request(request, gateway, fields, exchange.record, adjustments)

    plan, sent = plan_edits(parts, read)
    return await answer_request(request, plan, exchange, sent)


def plan_edits(
    parts: EditFields, read: Callable[[Mapping[str, object], tuple[Adjustment, ...]], ReadRequest]
) -> tuple[ImagePlan, SentContent]:
    """What is drawn for a request for edits, and what it was sent as.

    Args:
        parts: Of the request.
        read: Reads the fields that it has in common with generations; gets the adjustments of the others.

    Raises:
        InvalidRequest: A field is invalid.
        InvalidParams: The model cannot draw it.
    """
    options, others = take_options(parts.others)
    reading = read(others, options.adjustments)
    plan = plan_images(reading, others.get("model"))
    has_mask = parts.mask is not None
    params = make_edits(plan.params, plan.model, options.strength, has_mask, reading.is_strict)
    adjustments = (*reading.adjustments, *strength_adjustments(options.strength, params[0].edit))
    upload = make_upload(parts.image, parts.mask, plan.request, plan.model, params[0])
    plan = replace(plan, params=params, upload=upload, reading=replace(reading, adjustments=adjustments))
    fields = {**others, "strength": options.strength}
    return plan, SentContent(EDIT, fields, (parts.image, parts.mask))


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
