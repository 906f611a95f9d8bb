"""Exactly one usage record for every request, on each way out."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from service.errors import ClientGone, ServiceError, as_service_error
from service.payloads import PictureUsage


class Outcome(StrEnum):
    """How a request left the service."""

    DONE = "done"
    REFUSED = "refused"  # the caller's fault, or no room
    ABORTED = "aborted"  # the caller went away
    FAILED = "failed"  # ours


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One request's account."""

    request_id: str
    outcome: Outcome
    code: str  # "ok", or the error's code
    num_images: int  # asked for; 0 when the request was refused before that was known
    pictures: tuple[PictureUsage, ...]  # drawn and sent
    seconds: float  # from the request's arrival to its answer


Sink = Callable[[UsageRecord], None]


class Account:
    """An open account: what is known of a request so far."""

    def __init__(self, request_id: str):
        self.request_id = request_id
        self.num_images = 0
        self.pictures: tuple[PictureUsage, ...] = ()
        self._opened = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._opened

    def close(self, error: BaseException | None = None) -> UsageRecord:
        outcome, code = _judge(error)
        pictures = self.pictures if outcome is Outcome.DONE else ()
        return UsageRecord(self.request_id, outcome, code, self.num_images, pictures, self.seconds)


@contextmanager
def account(request_id: str, sink: Sink) -> Iterator[Account]:
    """An account that is settled when the block ends, however it ends."""
    opened = Account(request_id)
    try:
        yield opened
    except BaseException as error:
        sink(opened.close(error))
        raise
    sink(opened.close())


def _judge(error: BaseException | None) -> tuple[Outcome, str]:
    if error is None:
        return Outcome.DONE, "ok"
    if isinstance(error, (asyncio.CancelledError, ClientGone)):
        return Outcome.ABORTED, ClientGone.code
    known = as_service_error(error) if isinstance(error, Exception) else ServiceError()
    return (Outcome.REFUSED if known.status < 500 else Outcome.FAILED), known.code
