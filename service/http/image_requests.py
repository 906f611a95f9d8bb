"""What the routes that draw images have in common: how they read their fields, and how they answer."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.reading.adjustments import HEADER, header_value
from safelight.service.http.reading.request import STRICT_HEADER, ReadRequest, asks_for_strict, read_request
from safelight.service.http.schemas import ImageResponse
from safelight.service.usage.records import RequestRecorder, hash_user


def read_image_request(
    request: Request, gateway: Gateway, fields: Mapping[str, object], record: RequestRecorder
) -> ReadRequest:
    """The request that `fields` are; its record and its log line say whose it is and what was adjusted.

    Args:
        request: Its header may ask for the strict reading.
        gateway: Its settings may, too.
        fields: The fields by name.
        record: The request's record.

    Raises:
        InvalidRequest: A field is invalid.
        ModelNotFound: The model is not served.
    """
    is_strict = gateway.settings.strict or asks_for_strict(request.headers.get(STRICT_HEADER))
    reading = read_request(fields, gateway.names, is_strict)
    record.user = hash_user(reading.request.safety_identifier or reading.request.user or "")
    if reading.adjustments:
        request.state.request_log["adjusted"] = header_value(reading.adjustments)
    return reading


def answer_images(response: ImageResponse, reading: ReadRequest) -> Response:
    """The HTTP answer with `response`; a header names what was adjusted."""
    headers = {HEADER: header_value(reading.adjustments)} if reading.adjustments else None
    return Response(response.model_dump_json(), headers=headers, media_type="application/json")
