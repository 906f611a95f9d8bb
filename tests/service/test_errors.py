"""Every exception maps to a service error, and no details leak."""

import pickle
import re
import warnings

import pytest

from safelight.pipeline.errors import InvalidParams
from safelight.service import errors
from safelight.service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    ServiceError,
    StageFailed,
    StageLost,
    UnknownField,
    as_service_error,
)

with warnings.catch_warnings():  # Serve's deprecation warning about pydantic
    warnings.simplefilter("ignore")
    from ray.exceptions import (
        ActorDiedError,
        ActorUnavailableError,
        GetTimeoutError,
        ObjectLostError,
        RayTaskError,
        TaskCancelledError,
    )
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidParams("seed", "too big"), InvalidRequest),
        (StageFailed("it failed"), StageFailed),
        (TimeoutError(), DeadlineExceeded),
        (GetTimeoutError(), DeadlineExceeded),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), QueueFull),
        (ActorDiedError(), StageLost),
        (ActorUnavailableError("gone", None), StageLost),
        (ObjectLostError("00", None, ""), StageLost),
        (DeploymentUnavailableError(DeploymentID("Denoiser", "safelight")), StageLost),
        (TaskCancelledError(), StageLost),
        (RayServeException("upstream actor died"), StageLost),
        (RayTaskError("generate", "traceback", InvalidParams("seed", "too big")), InvalidRequest),
        (RayTaskError("generate", "traceback", ActorDiedError()), StageLost),
        (RayTaskError("generate", "secret", KeyError("secret")).as_instanceof_cause(), ServiceError),
        (RayTaskError("generate", "secret", StageFailed()).as_instanceof_cause(), StageFailed),
        (
            RayTaskError("generate", "secret", InvalidParams("seed", "too big")).as_instanceof_cause(),
            InvalidRequest,
        ),
        (RayTaskError("generate", "secret", ActorDiedError()).as_instanceof_cause(), StageLost),
        (KeyError("secret"), ServiceError),
        (MemoryError(), ServiceError),
    ],
)
def test_every_exception_maps_to_a_service_error(error: BaseException, kind: type[ServiceError]) -> None:
    service_error = as_service_error(error)
    assert type(service_error) is kind
    assert "secret" not in str(service_error)


# Every class of the tree: status, type, code, and the seconds of Retry-After.
TREE = {
    "ServiceError": (503, "server_error", "service_unavailable", 5),
    "InvalidRequest": (400, "invalid_request_error", "invalid_value", None),
    "MalformedBody": (400, "invalid_request_error", "invalid_json", None),
    "UnknownField": (400, "invalid_request_error", "unknown_parameter", None),
    "ContentRefused": (400, "invalid_request_error", "content_policy_violation", None),
    "ImageRefused": (400, "image_generation_user_error", "moderation_blocked", None),
    "Unauthorized": (401, "authentication_error", "invalid_api_key", None),
    "InvalidKey": (401, "authentication_error", "invalid_api_key", None),
    "InvalidMetricsKey": (401, "authentication_error", "invalid_api_key", None),
    "ForbiddenModel": (403, "permission_error", "model_not_allowed", None),
    "CrossSite": (403, "permission_error", "cross_site_request", None),
    "ModelNotFound": (404, "invalid_request_error", "model_not_found", None),
    "RouteNotFound": (404, "invalid_request_error", "not_found", None),
    "InvalidLink": (403, "permission_error", "invalid_link", None),
    "UntrustedHost": (403, "permission_error", "untrusted_host", None),
    "ChangesRefused": (403, "permission_error", "models_are_fixed", None),
    "ChangeUnderWay": (409, "invalid_request_error", "change_under_way", None),
    "ChangeFailed": (409, "invalid_request_error", "change_failed", None),
    "ImageNotStored": (404, "invalid_request_error", "image_not_found", None),
    "KeyMissing": (404, "invalid_request_error", "api_key_not_found", None),
    "JobNotFound": (404, "invalid_request_error", "job_not_found", None),
    "FileMissing": (404, "invalid_request_error", "file_not_found", None),
    "BatchNotFound": (404, "invalid_request_error", "batch_not_found", None),
    "JobsOff": (400, "invalid_request_error", "jobs_are_off", None),
    "JobNotDone": (409, "invalid_request_error", "job_not_done", None),
    "KeyReused": (409, "invalid_request_error", "idempotency_key_reused", None),
    "DeadlineTooShort": (400, "invalid_request_error", "deadline_too_short", None),
    "LinkExpired": (410, "invalid_request_error", "link_expired", None),
    "MethodNotAllowed": (405, "invalid_request_error", "method_not_allowed", None),
    "BodyTooSlow": (408, "invalid_request_error", "request_timeout", None),
    "BodyTooLarge": (413, "invalid_request_error", "request_too_large", None),
    "PoisonedRequest": (422, "server_error", "request_poisoned", None),
    "WrongContentType": (415, "invalid_request_error", "unsupported_media_type", None),
    "UnsupportedEncoding": (415, "invalid_request_error", "unsupported_encoding", None),
    "ClientGone": (499, "server_error", "client_gone", None),
    "Interrupted": (409, "invalid_request_error", "interrupted", None),
    "LeaseLost": (499, "server_error", "lease_lost", None),
    "TooManyJobs": (429, "rate_limit_error", "too_many_jobs", 30),
    "TooManyBatches": (429, "rate_limit_error", "too_many_batches", 30),
    "TooManyFiles": (429, "rate_limit_error", "too_many_files", None),
    "JobsUnavailable": (503, "server_error", "jobs_unavailable", 5),
    "QueueFull": (429, "rate_limit_error", "queue_full", 2),
    "PromiseRefused": (429, "rate_limit_error", "promise_refused", 1),
    "LimitReached": (429, "rate_limit_error", "rate_limit_exceeded", 1),
    "KeysUnavailable": (503, "server_error", "keys_unavailable", 5),
    "AccountsUnavailable": (503, "server_error", "accounts_unavailable", 5),
    "DeadlineExceeded": (503, "server_error", "deadline_exceeded", 10),
    "ShuttingDown": (503, "server_error", "shutting_down", 10),
    "StoreFailed": (503, "server_error", "image_store_failed", None),
    "StageFailed": (503, "server_error", "stage_failed", 5),
    "JobAbandoned": (503, "server_error", "job_abandoned", None),
    "BrokenImage": (503, "server_error", "broken_picture", None),
    "StageLost": (503, "server_error", "stage_lost", 5),
}


def all_errors(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """`kind` and every class under it; Ray derives classes of its own from them."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(error for child in children for error in all_errors(child))]


def test_every_error_has_its_status_code_and_retry_after() -> None:
    assert {
        kind.__name__: (kind.status, kind.type, kind.code, kind().retry_after) for kind in all_errors()
    } == TREE
    for kind in all_errors():
        seconds = TREE[kind.__name__][3]
        assert kind().headers.get("retry-after") == (None if seconds is None else str(seconds))


def test_the_module_describes_its_tree() -> None:
    described = re.findall(r"(\w+) +(\d{3})\b", str(errors.__doc__))
    assert {name: int(status) for name, status in described} == {
        name: status for name, (status, *_) in TREE.items()
    }


def test_a_parameter_has_its_request_name_in_the_error() -> None:
    error = as_service_error(InvalidParams("num_steps", "num_steps must be at least 3 for plms, got 2"))
    assert error.body()["error"] == {
        "message": "num_inference_steps must be at least 3 for plms, got 2",
        "type": "invalid_request_error",
        "param": "num_inference_steps",
        "code": "invalid_value",
    }


def test_a_service_error_survives_pickling() -> None:
    error = UnknownField("steps is not a field", "steps")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.param) == (UnknownField, str(error), "steps")
    assert copy.body() == error.body()


def test_the_body_is_openais_error_object() -> None:
    assert ServiceError().body() == {
        "error": {
            "message": "The service could not draw the image; please try again.",
            "type": "server_error",
            "param": None,
            "code": "service_unavailable",
        }
    }
