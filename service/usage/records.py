"""Exactly one usage record for every request, however it ends; the stages report its cost to the ledger."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from safelight.service.errors import ClientGone, ServiceError, as_service_error
from safelight.service.messages import ImageUsage

ANONYMOUS = "anonymous"  # the key of a request that came without one


class RequestOutcome(StrEnum):
    """How a request left the service."""

    DONE = "done"
    REFUSED = "refused"  # an invalid request, or a full queue
    ABORTED = "aborted"  # the caller disconnected
    FAILED = "failed"  # an error of the service


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """What storing the images of a request cost. Stores are no devices: their time is in no balance."""

    seconds: float  # of waiting for the store, also for one that has failed
    num_bytes: int  # stored

    def __add__(self, other: "StoreUsage") -> "StoreUsage":
        return StoreUsage(self.seconds + other.seconds, self.num_bytes + other.num_bytes)


NOTHING_STORED = StoreUsage(0.0, 0)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a request was told when it was let in, in seconds from its arrival; None: nothing."""

    promised_seconds: float | None = None
    forecast_seconds: float | None = None


NO_PROMISE = Promise()


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """How one request ended."""

    record_id: str  # unique, made here; the stages' usage events carry it
    request_id: str  # the client's own if it sent a legal one, else random
    outcome: RequestOutcome
    code: str  # "ok", or the error's code
    key: str  # of the account that the request belongs to
    model: str
    num_images: int  # requested; 0 when the request was refused before the number was known
    image_usages: tuple[ImageUsage, ...]  # of the images sent, also if a later one of its stream failed
    seconds: float  # from the request's arrival to its answer
    ended: float  # Unix time
    store: StoreUsage = NOTHING_STORED
    user: str = ""  # `hash_user` of the person whose request it is, if the client says who
    key_name: str = ""  # of the API key, as the operator knows it
    promised_seconds: float | None = None  # in which it was promised; None: nothing was, or it is not done

    @property
    def is_done(self) -> bool:
        return self.outcome is RequestOutcome.DONE

    @property
    def is_kept(self) -> bool:
        """Whether it was done as it was promised."""
        return self.promised_seconds is not None and self.is_done and self.seconds <= self.promised_seconds


Sink = Callable[[UsageRecord], None]


class RequestRecorder:
    """Collects what is known about a request until it ends."""

    def __init__(self, request_id: str, model: str, key: str = ANONYMOUS, key_name: str = ""):
        self.id = secrets.token_hex(8)
        self.request_id = request_id
        self.model = model
        self.key = key
        self.key_name = key_name
        self.record: UsageRecord | None = None  # once the request has ended
        self.user = ""
        self.num_images = 0
        self.image_usages: tuple[ImageUsage, ...] = ()
        self.store = NOTHING_STORED
        self.promise = NO_PROMISE  # once its images are there
        self.is_deferred = False  # whether a job has the record in place of the request that submits it
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self._started

    def close(self, error: BaseException | None = None) -> UsageRecord:
        """The record of the request, which ended with `error` or, without one, with images."""
        outcome, code = _outcome_of(error)
        self.record = UsageRecord(
            record_id=self.id,
            request_id=self.request_id,
            outcome=outcome,
            code=code,
            key=self.key,
            model=self.model,
            num_images=self.num_images,
            image_usages=self.image_usages,
            seconds=self.seconds,
            ended=time.time(),
            store=self.store,
            user=self.user,
            key_name=self.key_name,
            promised_seconds=self.promise.promised_seconds,
        )
        return self.record


def hash_user(name: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a user's name in UTF-8; empty without a name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16] if name else ""


@contextmanager
def record_request(recorder: RequestRecorder, sink: Sink) -> Iterator[RequestRecorder]:
    """When the block ends, in any way, pass the record of `recorder` to `sink`, unless it is deferred."""
    try:
        yield recorder
    except BaseException as error:
        if not recorder.is_deferred:
            sink(recorder.close(error))
        raise
    if not recorder.is_deferred:
        sink(recorder.close())


def _outcome_of(error: BaseException | None) -> tuple[RequestOutcome, str]:
    """The outcome and code of a request that ended with `error`."""
    if error is None:
        return RequestOutcome.DONE, "ok"
    if isinstance(error, (asyncio.CancelledError, ClientGone)):
        return RequestOutcome.ABORTED, error.code if isinstance(error, ClientGone) else ClientGone.code
    service_error = as_service_error(error) if isinstance(error, Exception) else ServiceError()
    is_refusal = service_error.status < 500
    return (RequestOutcome.REFUSED if is_refusal else RequestOutcome.FAILED), service_error.code
