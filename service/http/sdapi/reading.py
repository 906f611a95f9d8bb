"""Reads the body of a request of `/sdapi/v1`."""

import json
from collections.abc import Mapping
from typing import Any

from safelight.service.errors import MalformedBody
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.schemas import ImageRequest
from safelight.service.http.sdapi.samplers import SAMPLERS
from safelight.service.http.validation import parse_request


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `MalformedBody`."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise MalformedBody("The body must be a JSON object.")
    return value


def read_fields(fields: Mapping[str, object], gateway: Gateway) -> ImageRequest:
    """The request that `fields` are. Raises `InvalidRequest`."""
    values = dict(fields)
    width, height = values.pop("width", None), values.pop("height", None)
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        sizes = gateway.model.sizes
        nearest = min(sizes, key=lambda size: (abs(size[0] * height - size[1] * width), abs(size[0] - width)))
        values["size"] = f"{nearest[0]}x{nearest[1]}"
    sampler = values.pop("sampler_name", None)
    solver = SAMPLERS.get(str(sampler), sampler)
    if solver in gateway.model.solvers:
        values["solver"] = solver
    scheduler = values.pop("scheduler", None)
    if scheduler in gateway.model.spacings:
        values["timestep_spacing"] = scheduler
    if values.get("seed") == -1:
        del values["seed"]
    return parse_request(json.dumps(values).encode())
