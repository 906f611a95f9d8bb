"""What the routes that draw images have in common: how they read their fields, and how they answer."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from safelight.service.errors import ModelNotFound
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import (
    Exchange,
    ImagePlan,
    admit_images,
    describe_plan,
    generate_images,
)
from safelight.service.http.image_response import make_response, response_json
from safelight.service.http.reading.adjustments import HEADER, header_value
from safelight.service.http.reading.request import STRICT_HEADER, ReadRequest, asks_for_strict, read_request
from safelight.service.http.request_body import unless_gone
from safelight.service.http.schemas import Adjustment
from safelight.service.http.streaming import StreamedImages
from safelight.service.usage.records import RequestRecorder, hash_user


def read_image_request(
    request: Request,
    gateway: Gateway,
    fields: Mapping[str, object],
    record: RequestRecorder,
    adjustments: tuple[Adjustment, ...] = (),
) -> ReadRequest:
    """The request that `fields` are; record and log line say whose it is, its model, and what was adjusted.

    Args:
        request: Its header may ask for the strict reading.
        gateway: Its settings may, too.
        fields: The fields by name.
        record: The request's record.
        adjustments: Of fields that have been taken out of the request before.

    Raises:
        InvalidRequest: A field is invalid.
        ModelNotFound: The model is not served.
    """
    names, name = gateway.names, fields.get("model")
    if isinstance(name, str):
        with suppress(ModelNotFound):  # which is raised in its turn
            record.model = request.state.request_log["model"] = names.find(name).id
    is_strict = gateway.settings.strict or asks_for_strict(request.headers.get(STRICT_HEADER))
    reading = read_request(fields, names, is_strict)
    reading = replace(reading, adjustments=(*adjustments, *reading.adjustments))
    record.model = request.state.request_log["model"] = reading.model.id
    record.user = hash_user(reading.request.safety_identifier or reading.request.user or "")
    if reading.adjustments:
        request.state.request_log["adjusted"] = header_value(reading.adjustments)
    return reading


async def answer_images(request: Request, plan: ImagePlan, exchange: Exchange) -> Response:
    """Draw the images and answer with them, or with the stream of their events.

    Raises `ServiceError`.
    """
    if plan.request.stream:
        return await _stream_images(request, plan, exchange)
    generation = await unless_gone(request, generate_images(plan, exchange))
    headers = {HEADER: header_value(generation.adjustments)} if generation.adjustments else None
    body = response_json(make_response(generation))
    return Response(body, headers=headers, media_type="application/json")


async def _stream_images(request: Request, plan: ImagePlan, exchange: Exchange) -> Response:
    describe_plan(exchange, plan)
    await admit_images(exchange, plan)
    response = StreamedImages(request, plan, exchange)
    await response.open()
    return response
