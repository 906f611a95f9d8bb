"""Parts of the OpenAPI schema that FastAPI does not derive from the routes."""

from collections.abc import Callable
from typing import Any

from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.reading.schema import strict_schema, tolerant_schema
from safelight.service.http.schemas import ErrorResponse

_DESCRIPTIONS = {
    400: "A field is invalid; `param` names it and the message says what is allowed",
    401: "The key is missing or wrong",
    403: "The link is not one of this service, the key may not use the model, or another site sent this",
    404: "No such model, image, job, file, batch or key",
    408: "The body did not arrive in time",
    409: "The idempotency key was sent with another request, or the job is not done",
    410: "The link has expired",
    413: "The body is too large",
    415: "The body is not declared as JSON, or in an encoding that is not supported",
    422: "The denoiser died of the image, also when it drew nothing else",
    429: "Too many images are waiting, or a limit of the API key is reached; see Retry-After",
    503: "The image could not be drawn now; see Retry-After",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _DESCRIPTIONS.items()
}

# Any other error. Without it FastAPI declares its own 422 where a route has parameters; ours are 400.
OTHER_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "An error"}
}

GENERATION_ERRORS = {status: error for status, error in ERRORS.items() if status not in (401, 410)}


class OpenApiExtras:
    """What routes add to the schema by the models that are served, and so anew when those change."""

    def __init__(self) -> None:
        self._extras: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = []

    def add(self, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `build` returns, for the argument `openapi_extra` of a route; `refresh` keeps it true."""
        extra = build()
        self._extras.append((extra, build))
        return extra

    def refresh(self) -> None:
        """Build all anew, in place."""
        for extra, build in self._extras:
            extra |= build()


def image_request_body(names: ModelNames, is_strict: bool) -> dict[str, Any]:
    """The request body's schema, whose enumerations are what the model serves."""
    schema = strict_schema(names) if is_strict else tolerant_schema(names)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
