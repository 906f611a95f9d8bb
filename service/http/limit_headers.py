"""The headers `x-ratelimit-*` of an answer, in the form of OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safelight.service.quotas.keeper import LimitStatus

RESOURCES = ("requests", "images", "device-seconds", "spend")
KINDS = ("limit", "remaining", "reset")
HEADERS = tuple(f"x-ratelimit-{kind}-{resource}" for resource in RESOURCES for kind in KINDS)


def limit_headers(statuses: Sequence[LimitStatus]) -> dict[str, str]:
    """How much each limit is, what remains, and when it frees, as in `x-ratelimit-reset-images: 13h0m5s`."""
    if not statuses:
        return {}
    from safelight.service.quotas.periods import format_duration

    headers = {}
    for status in statuses:
        headers[f"x-ratelimit-limit-{status.resource}"] = f"{status.limit:.15g}"
        headers[f"x-ratelimit-remaining-{status.resource}"] = f"{status.remaining:.15g}"
        headers[f"x-ratelimit-reset-{status.resource}"] = format_duration(status.seconds)
    return headers
