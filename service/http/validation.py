"""Parses a request body into an `ImageRequest`, or names the first invalid field and what it allows."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from safelight.service.errors import InvalidRequest, MalformedBody, ServiceError, UnknownField
from safelight.service.http.schemas import ImageRequest

# Values that OpenAI allows, by field, and why Safelight refuses them.
NOT_GIVEN: dict[str, tuple[tuple[object, ...], str]] = {
    "background": (("transparent",), "images are opaque, so transparent cannot be given"),
    "output_format": (("gif", "svg"), "images are still and made of pixels, so gif and svg cannot be given"),
}
MAX_SHOWN = 100  # characters of a value in a sentence
NO_NAMES: Mapping[str, str] = {}


def parse_request(body: bytes) -> ImageRequest:
    """The request in the JSON `body`.

    Raises `MalformedBody`, `UnknownField` or `InvalidRequest` for the first fault.
    """
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        raise _as_service_error(error, {}) from None


def validate_fields(fields: Mapping[str, object], sent_names: Mapping[str, str] = NO_NAMES) -> ImageRequest:
    """The request with these `fields`; errors speak of a field by its `sent_names`, if it has one there.

    Raises `UnknownField` or `InvalidRequest` for the first fault.
    """
    try:
        return ImageRequest.model_validate(fields)
    except ValidationError as error:
        raise _as_service_error(error, sent_names) from None


def describe(rule: Mapping[str, Any]) -> str:
    """A JSON schema's rule in words: `an integer between 1 and 10`."""
    if "anyOf" in rule:
        return describe(rule["anyOf"][0])
    if "const" in rule:
        return str(rule["const"]).lower()
    if "enum" in rule:
        return "one of " + ", ".join(map(str, rule["enum"]))
    if "minimum" in rule and rule["minimum"] == rule["maximum"]:
        return str(rule["minimum"])
    if "minimum" in rule:
        return f"{_article(rule['type'])} between {rule['minimum']} and {rule['maximum']}"
    if "items" in rule:
        return f"a list of {rule['minItems']}, each {describe(rule['items'])}"
    if "minLength" in rule:
        return f"a string of 1 to {rule['maxLength']} characters, not blank"
    if "maxLength" in rule:
        return f"a string of at most {rule['maxLength']} characters"
    if "pattern" in rule:
        return "WIDTHxHEIGHT or auto"
    return _article(rule["type"])


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


def _as_service_error(error: ValidationError, sent_names: Mapping[str, str]) -> ServiceError:
    """The service error for the first fault in `error`."""
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return MalformedBody(_whole_body(fault["type"], fault["msg"]))
    field = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return UnknownField(
            f"{field[:100]} is not a field of this request; allowed: {', '.join(ImageRequest.model_fields)}.",
            field[:100],
        )
    if fault["type"] == "missing":
        return InvalidRequest(f"{field} is required.", field)
    allowed = describe(ImageRequest.model_json_schema()["properties"][field])
    values, reason = NOT_GIVEN.get(field, ((), ""))
    value = fault["input"]
    sent_name = sent_names.get(field, field)[:MAX_SHOWN]
    if any(type(value) is type(refused) and value == refused for refused in values):
        return InvalidRequest(f"{sent_name}: {reason}; allowed: {allowed}.", sent_name)
    return InvalidRequest(f"{sent_name} must be {allowed}; got {_show(value)}.", sent_name)


def _show(value: object) -> str:
    """`value` as JSON, or its length if it is a long text."""
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"{len(value)} characters"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _whole_body(kind: str, message: str) -> str:
    if kind == "json_invalid":
        return f"The body is not valid JSON ({message.removeprefix('Invalid JSON: ')})."
    return "The body must be a JSON object."
