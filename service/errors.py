"""Errors of requests, each with its HTTP status and OpenAI's error object.

ServiceError                 503  anything unforeseen, without details
├── InvalidRequest           400  names the field
│   ├── MalformedBody        400  not JSON, or not an object
│   ├── UnknownField         400
│   ├── ContentRefused       400  a word of the text is denied
│   ├── ImageRefused         400  by the classifier of images
│   ├── Unauthorized         401  the admin key
│   │   ├── InvalidKey       401  an API key that is missing, unknown or ended
│   │   └── InvalidMetricsKey  401
│   ├── ForbiddenModel       403  by the API key
│   ├── CrossSite            403  a page of another origin sent it
│   ├── ModelNotFound        404
│   ├── RouteNotFound        404
│   ├── InvalidLink          403  of a stored image: its signature is wrong
│   ├── UntrustedHost        403
│   ├── ChangesRefused       403  of the models
│   ├── ChangeUnderWay       409  another change of the models
│   ├── ChangeFailed         409  of the models
│   ├── ImageNotStored       404
│   ├── KeyMissing           404  of the admin API
│   ├── JobNotFound          404  of this caller
│   ├── FileMissing          404  of this caller
│   ├── BatchNotFound        404  of this caller
│   ├── JobsOff              400  or the images of jobs cannot be stored
│   ├── JobNotDone           409  so that it has no images, or none any more
│   ├── KeyReused            409  an Idempotency-Key, for another request
│   ├── DeadlineTooShort     400  also on an idle service
│   ├── LinkExpired          410
│   ├── MethodNotAllowed     405
│   ├── BodyTooSlow          408
│   ├── BodyTooLarge         413
│   └── WrongContentType     415
│       └── UnsupportedEncoding  415  of the body: compression or character set
├── ClientGone               499  never sent: the client has disconnected
│   ├── Interrupted          409  the client has asked for an end
│   └── LeaseLost            499  another gateway draws the job, or it was cancelled
├── QueueFull                429
│   ├── TooManyJobs          429
│   │   ├── TooManyBatches   429
│   │   └── TooManyFiles     429
│   └── PromiseRefused       429  the images would be done too late; says when
├── JobsUnavailable          503  the database of jobs cannot be used
├── LimitReached             429  of the API key: requests, images, device-seconds or spend
├── KeysUnavailable          503  the database of keys cannot be read
├── AccountsUnavailable      503  the ledger does not answer, or its database cannot be read
├── DeadlineExceeded         503
├── ShuttingDown             503
├── StoreFailed              503  of the image store: it cannot be written or read
└── StageFailed              503  a stage could not process the image
    ├── JobAbandoned         503  a job that the service was lost with too often
    ├── PoisonedRequest      422  the denoiser died of its image, also when it drew nothing else
    ├── BrokenImage          503  the model produced invalid numbers; a retry changes nothing
    └── StageLost            503  its process died; the work can be sent again
"""

import asyncio
import math
from typing import Any

from safelight.pipeline.errors import InvalidParams

MAX_RETRY_SECONDS = 60.0  # after which a client should not send a request again by itself


class ServiceError(Exception):
    """An error with an HTTP status and a message for the client; `param` names the field at fault."""

    status = 503
    type = "server_error"
    code = "service_unavailable"
    message = "The service could not draw the image; please try again."
    # Seconds; None where a retry is of no use.
    retry_after: int | None = 5
    # Whether a client should send the same request again by itself.
    should_retry = True

    def __init__(self, message: str | None = None, param: str | None = None):
        super().__init__(message or self.message)
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        # OpenAI's clients send 408, 409, 429 and all of 500 and above again, unless this says no
        return headers if self.should_retry else headers | {"x-should-retry": "false"}

    def body(self) -> dict[str, dict[str, Any]]:
        """OpenAI's error object, always with all four keys."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServiceError):
    """The request is at fault."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    message = "The request is not valid."
    retry_after = None
    should_retry = False


class MalformedBody(InvalidRequest):
    code = "invalid_json"


class UnknownField(InvalidRequest):
    code = "unknown_parameter"


class ContentRefused(InvalidRequest):
    code = "content_policy_violation"
    message = (
        "Your request was rejected as a result of our safety system: the text holds words that this service "
        "does not draw."
    )


class ImageRefused(InvalidRequest):
    type = "image_generation_user_error"
    code = "moderation_blocked"
    message = (
        "Your request was rejected by the safety system: an image that was drawn for it may not be sent by "
        "this service."
    )


class Unauthorized(InvalidRequest):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    message = "This route is the operator's: send the header authorization: Bearer KEY, with the admin key."

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"www-authenticate": "Bearer"}  # RFC 9110: every 401 names its scheme


class InvalidKey(Unauthorized):
    message = "This service needs an API key: send the header authorization: Bearer KEY."
    scheme = 'Bearer realm="safelight"'

    def __init__(self, message: str | None = None, scheme: str | None = None):
        super().__init__(message)
        self.scheme = scheme or self.scheme

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"www-authenticate": self.scheme}


class InvalidMetricsKey(Unauthorized):
    message = "Metrics need a key: send the header authorization: Bearer KEY, with the metrics key."


class ForbiddenModel(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class CrossSite(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "cross_site_request"
    message = (
        "A page of another origin sent this request; the setting cors_origins lists those that may, and with "
        "API keys any may that has one."
    )


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"


class RouteNotFound(InvalidRequest):
    status = 404
    code = "not_found"
    message = "There is no such route; /docs lists those that exist."


class InvalidLink(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "invalid_link"
    message = "The link is not one of this service: its name, time or signature was changed."


class UntrustedHost(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "untrusted_host"
    message = "This route is not open to the host or the origin of the request."


class ChangesRefused(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "models_are_fixed"


class ChangeUnderWay(InvalidRequest):
    status = 409
    code = "change_under_way"
    message = "Models are being added or removed already; please try again when that is done."


class ChangeFailed(InvalidRequest):
    status = 409
    code = "change_failed"


class ImageNotStored(InvalidRequest):
    status = 404
    code = "image_not_found"
    message = "There is no such image, or it has been deleted."


class KeyMissing(InvalidRequest):
    status = 404
    code = "api_key_not_found"
    message = "There is no such API key."


class JobNotFound(InvalidRequest):
    status = 404
    code = "job_not_found"
    message = "There is no such job."


class FileMissing(InvalidRequest):
    status = 404
    code = "file_not_found"
    message = "There is no such file, or it has expired."


class BatchNotFound(InvalidRequest):
    status = 404
    code = "batch_not_found"
    message = "There is no such batch."


class JobsOff(InvalidRequest):
    code = "jobs_are_off"
    message = "There are no jobs and no Idempotency-Key here: the setting jobs or image_store says so."


class JobNotDone(InvalidRequest):
    status = 409
    code = "job_not_done"


class KeyReused(InvalidRequest):
    status = 409
    code = "idempotency_key_reused"
    message = (
        "Idempotency-Key: this key was sent with another request in the last 24 hours; send another key, or "
        "the same request."
    )


class DeadlineTooShort(InvalidRequest):
    code = "deadline_too_short"
    message = "deadline_ms: the images take longer, also on an idle service."


class LinkExpired(InvalidRequest):
    status = 410
    code = "link_expired"
    message = "The link has expired; images are not kept longer than their links."


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"
    should_retry = True


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class WrongContentType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"
    message = "The body must be JSON: send the header content-type: application/json."


class UnsupportedEncoding(WrongContentType):
    code = "unsupported_encoding"

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"accept-encoding": "gzip, deflate"}  # RFC 7694


class ClientGone(ServiceError):
    status = 499
    code = "client_gone"
    message = "The client went away before its image was drawn."
    retry_after = None
    should_retry = False


class Interrupted(ClientGone):
    status = 409
    type = "invalid_request_error"
    code = "interrupted"
    message = "The request was ended by its caller before its images were drawn."


class LeaseLost(ClientGone):
    code = "lease_lost"
    message = "The job was cancelled, or is drawn by another gateway."


class QueueFull(ServiceError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    message = "Too many images are waiting; please try again later."
    retry_after: int | None = 2


class TooManyJobs(QueueFull):
    code = "too_many_jobs"
    retry_after: int | None = 30
    should_retry = False  # by itself: jobs take minutes


class TooManyBatches(TooManyJobs):
    code = "too_many_batches"


class TooManyFiles(TooManyJobs):
    code = "too_many_files"
    retry_after = None


class PromiseRefused(QueueFull):
    """The images cannot be promised in time: when they would be done, and when to come again.

    Args:
        message: For the client.
        promised: Seconds in which they would have to be done.
        forecast: Seconds in which they would be done.
        retry: Seconds after which they would be let in.
        work: Seconds of the device that an image takes.
    """

    code = "promise_refused"
    message = "The images would not be done in time; please try again later."

    def __init__(
        self,
        message: str | None = None,
        promised: float = 0.0,
        forecast: float = 0.0,
        retry: float = 1.0,
        work: float = 0.0,
    ):
        super().__init__(message)
        self.promised_seconds, self.forecast_seconds, self.work_seconds = promised, forecast, work
        self.replica = ""  # the denoiser that refused; empty: the gateway, without asking one
        self.set_retry(retry)

    def set_retry(self, seconds: float) -> None:
        """Set after how many seconds the same request would be let in."""
        self.retry_seconds = seconds
        self.retry_after = max(1, math.ceil(seconds))
        self.should_retry = seconds <= MAX_RETRY_SECONDS

    def body(self) -> dict[str, dict[str, Any]]:
        body = super().body()
        body["error"]["forecast"] = {
            "seconds": round(self.forecast_seconds, 3),
            "promised_seconds": round(self.promised_seconds, 3),
            "retry_seconds": round(self.retry_seconds, 3),
        }
        return body


class JobsUnavailable(ServiceError):
    code = "jobs_unavailable"
    message = "The database of jobs cannot be used now; please try again later."


class LimitReached(ServiceError):
    """A limit of the API key; `seconds` is when it frees."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    message = "A limit of the API key is reached; please try again later."

    def __init__(self, message: str | None = None, code: str = code, seconds: float = 1.0):
        super().__init__(message)
        self.code = code
        self.retry_after = max(1, math.ceil(seconds))
        self.should_retry = seconds <= MAX_RETRY_SECONDS


class KeysUnavailable(ServiceError):
    code = "keys_unavailable"
    message = "API keys cannot be checked now; please try again later."


class AccountsUnavailable(ServiceError):
    code = "accounts_unavailable"
    message = "The accounts cannot be read now: the ledger is starting, or its database does not answer."


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    message = "The image was not finished in time; please try again later."
    retry_after = 10
    should_retry = False  # at once: an overloaded service would work on it for the whole deadline again


class ShuttingDown(ServiceError):
    code = "shutting_down"
    message = "The service is being stopped; please try again later."
    retry_after = 10


class StoreFailed(ServiceError):
    code = "image_store_failed"
    message = "The image store cannot be used."
    retry_after = None
    should_retry = False  # the images would be drawn again, and the store is still full or away


class StageFailed(ServiceError):
    code = "stage_failed"


class BrokenImage(StageFailed):
    code = "broken_picture"
    retry_after = None
    should_retry = False


class PoisonedRequest(StageFailed):
    status = 422
    code = "request_poisoned"
    message = (
        "The denoiser was lost three times while it drew this image, the last time alone; the image is not "
        "tried again. Another prompt, size or number of steps may work."
    )
    retry_after = None
    should_retry = False


class JobAbandoned(StageFailed):
    code = "job_abandoned"
    message = "The service was lost several times while it drew this job, which is given up."
    retry_after = None
    should_retry = False


class StageLost(StageFailed):
    """The loss of a stage, with its name if that is known."""

    code = "stage_lost"
    message = "A part of the service was lost and is being restarted; please try again."

    def __init__(self, message: str | None = None, stage: str = ""):
        super().__init__(message)
        self.stage = stage


# the pipeline's parameters that have another name in requests
REQUEST_FIELDS = {"num_steps": "num_inference_steps"}

# By name, so that this module does not import Ray. The first match in the class's method resolution order
# counts.
RAY_ERRORS: dict[str, type[ServiceError]] = {
    "BackPressureError": QueueFull,
    "GetTimeoutError": DeadlineExceeded,
    "RayActorError": StageLost,
    "ObjectLostError": StageLost,
    "WorkerCrashedError": StageLost,
    "NodeDiedError": StageLost,
    "ReplicaUnavailableError": StageLost,
    "DeploymentUnavailableError": StageLost,
    # Cancelled by a replica that is being replaced; after a client's own cancellation no response is sent.
    "TaskCancelledError": StageLost,
    # "upstream actor died", raised for a chained call.
    "RayServeException": StageLost,
}


def as_invalid_request(error: InvalidParams) -> InvalidRequest:
    """`error` with the parameter's name in requests, both in `param` and in the sentence."""
    field = REQUEST_FIELDS.get(error.param, error.param)
    return InvalidRequest(str(error).replace(error.param, field, 1), field)


def as_service_error(error: BaseException) -> ServiceError:
    """The service error for any exception; an unknown one becomes a bare `ServiceError` without details."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == "ray" and kind.__name__ in RAY_ERRORS:
            return RAY_ERRORS[kind.__name__]()
    # Before our own classes: Ray's wrapper of a replica's exception is an instance of them too, but its
    # message is a traceback.
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception) and cause is not error:
        return as_service_error(cause)
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, InvalidParams):
        return as_invalid_request(error)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return DeadlineExceeded()
    return ServiceError()
