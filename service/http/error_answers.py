"""Answers to the exceptions that routes raise."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from safelight.pipeline.errors import InvalidParams
from safelight.service.errors import (
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    ServiceError,
    as_service_error,
)
from safelight.service.http.middleware import error_response
from safelight.service.http.request_log import describe_error


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception of a route with OpenAI's error object."""
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ServiceError, _answer_error)
    app.add_exception_handler(InvalidParams, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_query)


async def _answer_error(request: Request, error: Exception) -> Response:
    return _respond(request, as_service_error(error), error)


def _respond(request: Request, answer: ServiceError, error: Exception | None = None) -> Response:
    """Answer with an error, and have the request's log line say why: because of `error`, if it is another."""
    request.state.request_log |= describe_error(error or answer, answer)
    return error_response(answer, request.state.request_id)


async def _answer_invalid_query(request: Request, error: Exception) -> Response:
    """The first fault of a query string; bodies are validated by `read_request`."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = str(fault["loc"][-1])
    return _respond(request, InvalidRequest(f"{name}: {fault['msg']}.", name))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors, which are about routes and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted(_allowed_methods(request)))
        response = _respond(
            request, MethodNotAllowed(f"{request.method} is not allowed here; allowed: {allowed}.")
        )
        response.headers["allow"] = allowed
        return response
    return _respond(request, RouteNotFound() if error.status_code == 404 else ServiceError(), error)


def _allowed_methods(request: Request) -> set[str]:
    """The methods of all routes of the request's path, and HEAD where there is GET."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    methods = {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return methods | {"HEAD"} if "GET" in methods else methods
