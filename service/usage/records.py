"""Exactly one usage record for every request, on each way out. What it cost is charged to its record_request by the stages (`ledger`)."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from safelight.service.errors import ClientGone, ServiceError, as_service_error
from safelight.service.messages import ImageUsage

ANONYMOUS = "anonymous"  # the key of whoever has none


class RequestOutcome(StrEnum):
    """How a request left the service."""

    DONE = "done"
    REFUSED = "refused"  # the caller's fault, or no room
    ABORTED = "aborted"  # the caller went away
    FAILED = "failed"  # ours


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One request's record_request."""

    record_id: str  # what the stages charge; ours, and unique
    request_id: str  # the client's own, if it has chosen one
    outcome: RequestOutcome
    code: str  # "ok", or the error's code
    key: str  # whose request it was
    model: str
    num_images: int  # asked for; 0 when the request was refused before that was known
    images: tuple[ImageUsage, ...]  # drawn and sent
    seconds: float  # from the request's arrival to its answer
    ended: float  # Unix time

    @property
    def is_done(self) -> bool:
        return self.outcome is RequestOutcome.DONE


Sink = Callable[[UsageRecord], None]


class RequestRecorder:
    """An open record_id: what is known of a request so far."""

    def __init__(self, request_id: str, model: str, key: str = ANONYMOUS):
        self.id = secrets.token_hex(8)
        self.request_id = request_id
        self.model = model
        self.key = key
        self.num_images = 0
        self.images: tuple[ImageUsage, ...] = ()
        self._opened = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._opened

    def close(self, error: BaseException | None = None) -> UsageRecord:
        outcome, code = _judge(error)
        images = self.images if outcome is RequestOutcome.DONE else ()
        return UsageRecord(
            self.id,
            self.request_id,
            outcome,
            code,
            self.key,
            self.model,
            self.num_images,
            images,
            self.seconds,
            time.time(),
        )


@contextmanager
def record_request(request_id: str, model: str, sink: Sink) -> Iterator[RequestRecorder]:
    """An record_request that is settled when the block ends, however it ends."""
    opened = RequestRecorder(request_id, model)
    try:
        yield opened
    except BaseException as error:
        sink(opened.close(error))
        raise
    sink(opened.close())


def _judge(error: BaseException | None) -> tuple[RequestOutcome, str]:
    if error is None:
        return RequestOutcome.DONE, "ok"
    if isinstance(error, (asyncio.CancelledError, ClientGone)):
        return RequestOutcome.ABORTED, ClientGone.code
    known = as_service_error(error) if isinstance(error, Exception) else ServiceError()
    return (RequestOutcome.REFUSED if known.status < 500 else RequestOutcome.FAILED), known.code
