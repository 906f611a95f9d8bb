"""Who sends a request: its API key, and what it counts for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from safelight.pipeline.params import ONLY_CALLER, Share
from safelight.service.usage.records import RequestRecorder

if TYPE_CHECKING:
    from safelight.service.keys.api_key import ApiKey
    from safelight.service.quotas.keeper import LimitStatus, Reservation

CALLER = "caller"  # in the request's state


@dataclass
class Caller:
    """The sender of one request.

    Attributes:
        key: The API key; None on a service without keys.
        statuses: Of the limits that were counted.
        reservation: Of its quotas.
        recorder: Of the request's usage record, once it has one.
    """

    key: ApiKey | None = None
    statuses: list[LimitStatus] = field(default_factory=list)
    reservation: Reservation | None = None
    recorder: RequestRecorder | None = None


def make_recorder(request_id: str, model: str, key: ApiKey | None) -> RequestRecorder:
    """The recorder of a request that `key` sends; None is anonymous."""
    if key is None:
        return RequestRecorder(request_id, model)
    return RequestRecorder(request_id, model, key.id, key.spec.name)


def share_of(key: ApiKey | None) -> Share:
    """Of the devices, for what `key` sends; without keys all requests are one caller's."""
    return ONLY_CALLER if key is None else Share(key.id, key.spec.weight)


def caller_of(request: Request) -> Caller:
    """Who sends the request, by the rule of its route."""
    caller: Caller = getattr(request.state, CALLER)
    return caller
