"""One log line for each request: what was asked, how it ended and why."""

import logging
import traceback
from typing import Any

from starlette.types import Scope

from safelight.service.errors import InvalidRequest, ServiceError
from safelight.service.http.reading.field_names import field_of, without_wrapper

logger = logging.getLogger(__name__)

KEY = "request_log"  # in the scope's state
MAX_TEXT = 1000  # characters of a path or a cause
TEXT_FIELDS = ("prompt", "negative_prompt")
CLIENT_GONE = 499


def start_log(scope: Scope) -> dict[str, Any]:
    """The fields of the request's line, which its route and its error handler add to."""
    fields: dict[str, Any] = {}
    scope.setdefault("state", {})[KEY] = fields
    return fields


def describe_error(error: BaseException, answer: ServiceError) -> dict[str, Any]:
    """The cause of a refusal or fault, for the line; a faulty text of a client's is not repeated.

    An error that nothing has foreseen, for which the answer is a bare `ServiceError`, has its traceback.
    """
    if isinstance(answer, InvalidRequest):
        field = field_of(without_wrapper(answer.param or ""))
        cause = None if field in TEXT_FIELDS else str(answer)
        return {"code": answer.code, "param": answer.param, "cause": _shortened(cause)}
    root = _root_cause(error)
    fields = {"code": answer.code, "cause": _shortened(f"{type(root).__name__}: {root}".removesuffix(": "))}
    if type(answer) is ServiceError:
        fields["traceback"] = "".join(traceback.format_exception(error))
    return fields


def _root_cause(error: BaseException) -> BaseException:
    """What was raised first. Ray wraps the exception of another process, and has it under `cause`."""
    chain = [error]
    while True:
        wrapped = getattr(chain[-1], "cause", None)
        cause = wrapped if isinstance(wrapped, BaseException) else chain[-1].__cause__
        if cause is None:
            return chain[-1]
        if any(cause is earlier for earlier in chain):  # an error of ours, raised from Ray's wrapper of it
            return cause
        chain.append(cause)


def write_line(scope: Scope, status: int, seconds: float, fields: dict[str, Any]) -> None:
    """Write the line of a request that has ended.

    Args:
        scope: The request.
        status: Of its answer; 499 if the client has gone.
        seconds: From its arrival to its end.
        fields: What `start_log` returned.
    """
    head = {
        "id": scope["state"].get("request_id"),
        "method": scope["method"],
        "path": _shortened(scope["path"]),
        "status": status,
    }
    line = head | fields | {"seconds": round(seconds, 4)}
    logger.log(_level(status, scope), "request", extra={"fields": line})


def _level(status: int, scope: Scope) -> int:
    """Probes and scrapes are of no interest unless they fail; `/readyz` says 503 until the start is over."""
    if status >= 500 and scope["path"] != "/readyz":
        return logging.ERROR
    if 400 <= status < 500:
        return logging.WARNING
    return logging.INFO if scope["method"] == "POST" else logging.DEBUG


def _shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
