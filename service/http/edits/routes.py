"""`POST /v1/images/edits`: images drawn from an image and a text."""

import json
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.errors import MalformedBody, WrongContentType
from safelight.service.http.edits.fields import take_options
from safelight.service.http.edits.multipart import read_form
from safelight.service.http.edits.params import make_edits, make_upload
from safelight.service.http.edits.schema import edit_request_body
from safelight.service.http.edits.uploads import EditFields, split_fields
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import OpenRequest, generate_images, open_request, plan_images
from safelight.service.http.image_response import make_response, response_json
from safelight.service.http.openapi import GENERATION_ERRORS, image_request_body
from safelight.service.http.public_url import base_url
from safelight.service.http.request_body import content_type, is_json, read_body, unless_gone
from safelight.service.http.schemas import ImageResponse
from safelight.service.http.validation import parse_request
from safelight.service.settings import Settings

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
        # The body is parsed here and not by FastAPI, so that open_request also records malformed bodies.
        with open_request(request, gateway, base_url(request, gateway.settings), "edit") as opened:
            return await _edit(request, opened)


async def _edit(request: Request, opened: OpenRequest) -> Response:
    """Answer one request for edits."""
    gateway = opened.gateway
    parts = await read_edit_fields(request, gateway.settings)
    options, others = take_options(parts.others)
    plan = plan_images(parse_request(json.dumps(_typed(others)).encode()), gateway)
    params = make_edits(plan.params, gateway.model, options.strength, parts.mask is not None)
    upload = make_upload(parts.image, parts.mask, plan.request, params[0])
    generation = await unless_gone(
        request, generate_images(replace(plan, params=params, upload=upload), opened)
    )
    return Response(response_json(make_response(generation)), media_type="application/json")


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
