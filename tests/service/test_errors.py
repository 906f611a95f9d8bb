"""Every exception maps to a service error, and no details leak."""

import pickle
import warnings

import pytest

from safelight.pipeline.errors import InvalidParams
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
    assert (service_error.status >= 500) == (
        service_error.retry_after is not None and service_error.status != 429
    )


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
