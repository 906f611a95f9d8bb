"""What the headers of a request say about how it is to be answered."""

import re

from starlette.requests import Request

from safelight.service.errors import InvalidRequest

IDEMPOTENCY_KEY = "idempotency-key"
PREFER, APPLIED = "prefer", "preference-applied"
RESPOND_ASYNC = "respond-async"  # RFC 7240
KEY = re.compile(r"[\x20-\x7e]{1,255}")


def asks_for_job(request: Request) -> bool:
    """Whether the client would rather not wait."""
    preferences = ",".join(request.headers.getlist(PREFER)).split(",")
    names = (preference.partition(";")[0].partition("=")[0] for preference in preferences)
    return RESPOND_ASYNC in (name.strip().lower() for name in names)


def idempotency_key(request: Request) -> str | None:
    """The client's key, with or without the quotation marks of a structured field; None without one.

    Raises `InvalidRequest`.
    """
    values = request.headers.getlist(IDEMPOTENCY_KEY)
    if not values:
        return None
    key = values[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if len(values) > 1 or not KEY.fullmatch(key):
        raise InvalidRequest(
            "Idempotency-Key must be one key of 1 to 255 ASCII characters.", "Idempotency-Key"
        )
    return key
