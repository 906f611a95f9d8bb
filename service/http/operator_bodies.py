"""JSON bodies of the operator's routes, read by the pydantic models that describe them."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from safelight.service.errors import InvalidRequest
from safelight.service.http.request_body import read_json_object
from safelight.service.settings import Settings

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, settings: Settings, model: type[Body]) -> Body:
    """The body of `request` as a `model`. Raises `InvalidRequest` for the first fault."""
    fields = await read_json_object(request, settings.max_body_bytes, settings.body_seconds)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, fault["loc"]))[:100]
        raise InvalidRequest(f"{name} {_reason(fault, model)}.", name) from None


def describe_body(model: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI schema says of a route with such a body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _reason(fault: ErrorDetails, model: type[BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"is not a field of this request; allowed: {', '.join(model.model_fields)}"
    if fault["type"] == "missing":
        return "is required"
    return fault["msg"].replace("Input should", "must").replace("String should", "must")
