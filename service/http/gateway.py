"""The FastAPI app over a backend.

Routes are thin: validation, translation and dispatching have modules of their own.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.errors import InvalidParams
from safelight.service.backend import Backend
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import (
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    ServiceError,
    as_service_error,
)
from safelight.service.http.auth import BearerToken, require_admin
from safelight.service.http.docs import make_app
from safelight.service.http.edits.routes import add_edit_routes
from safelight.service.http.gateway_parts import Gateway, make_image_store
from safelight.service.http.generation import OpenRequest, generate_images, open_request, plan_images
from safelight.service.http.image_files import add_file_routes
from safelight.service.http.image_response import make_response, response_json
from safelight.service.http.mcp_route import Endpoint, add_mcp_route, make_mcp_endpoint, running
from safelight.service.http.middleware import Envelope, error_response
from safelight.service.http.openapi import (
    ERRORS,
    GENERATION_ERRORS,
    OTHER_ERRORS,
    image_request_body,
)
from safelight.service.http.page.routes import add_page_routes
from safelight.service.http.progress import ProgressEstimator
from safelight.service.http.public_url import base_url
from safelight.service.http.readiness import WarmUp
from safelight.service.http.request_body import read_json_body, unless_gone
from safelight.service.http.request_log import describe_error
from safelight.service.http.schemas import Curves, ImageResponse, Model, ModelList, Readiness
from safelight.service.http.sdapi.routes import add_sdapi_routes
from safelight.service.http.translation import (
    check_model,
    describe_curves,
    describe_model,
)
from safelight.service.http.validation import parse_request
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.telemetry.tracing import Tracing
from safelight.service.usage.client import LedgerClient, LocalLedger
from safelight.service.usage.ledger import MINUTE, MINUTES_KEPT
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.reporter import Outbox, UsageReporter

EDITS_PATH = "/v1/images/edits"
WINDOW = "Length of the window in seconds, extended to the start of a minute; default: since the start."


def build_gateway(
    backend: Backend,
    model: ModelInfo,
    settings: Settings,
    ledger: LedgerClient | None = None,
    proxied: bool = False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The app.

    Args:
        backend: Generates the images.
        model: The served model.
        settings: The service's settings.
        ledger: The ledger that all gateways share; a local one if None.
        proxied: Whether Serve's proxy is in front, which adds the request id to each response itself.
        tracing: Opens the spans; None for no tracing.
    """
    gateway = _make_gateway(backend, model, settings, ledger or LocalLedger(settings), tracing or Tracing())
    mcp_endpoint = make_mcp_endpoint(gateway)
    app = make_app(
        title="Safelight",
        summary="Text in, image out.",
        lifespan=_lifespan(gateway, mcp_endpoint),
        redirect_slashes=False,
    )
    app.state.dispatcher = gateway.dispatcher
    for add_routes in (
        _add_image_route,
        add_file_routes,
        add_sdapi_routes,
        add_edit_routes,
        _add_accounting_route,
        _add_model_routes,
        _add_health_routes,
    ):
        add_routes(app, gateway)
    add_mcp_route(app, mcp_endpoint)
    add_page_routes(app)
    _add_error_handlers(app)
    app.add_middleware(Envelope, proxied=proxied)
    return app


def _make_gateway(
    backend: Backend, model: ModelInfo, settings: Settings, ledger: LedgerClient, tracing: Tracing
) -> Gateway:
    """Connect the parts of a gateway.

    Args:
        backend: Generates the images.
        model: The served model.
        settings: The service's settings.
        ledger: The ledger.
        tracing: Opens the spans.
    """
    metrics = Metrics()
    outbox = Outbox()
    dispatcher = RequestDispatcher(backend, metrics, settings, ledger)
    return Gateway(
        model=model,
        settings=settings,
        dispatcher=dispatcher,
        warm_up=WarmUp(dispatcher, model),
        metrics=metrics,
        ledger=ledger,
        outbox=outbox,
        reporter=UsageReporter(outbox.collect, ledger.send),
        tracing=tracing,
        image_store=make_image_store(settings),
        progress=ProgressEstimator(),
    )


def _lifespan(
    gateway: Gateway, mcp_endpoint: Endpoint | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(gateway.warm_up.run())]
        if gateway.image_store is not None:
            tasks.append(asyncio.ensure_future(gateway.image_store.run()))
        gateway.reporter.start()
        async with running(mcp_endpoint):
            yield
        await cancel_and_wait(*tasks)
        await asyncio.to_thread(gateway.reporter.stop)

    return lifespan


def _add_image_route(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        responses=GENERATION_ERRORS,
        openapi_extra=image_request_body(gateway.model),
        summary="Draw images from a text",
    )
    async def generate(request: Request) -> Response:
        # The body is parsed here and not by FastAPI, so that open_request also records malformed bodies.
        with open_request(request, gateway, base_url(request, gateway.settings)) as opened:
            return await _generate(request, opened)


async def _generate(request: Request, opened: OpenRequest) -> Response:
    """Answer one request for images."""
    settings = opened.gateway.settings
    body = await read_json_body(request, settings.max_body_bytes, settings.body_seconds)
    plan = plan_images(parse_request(body), opened.gateway)
    generation = await unless_gone(request, generate_images(plan, opened))
    return Response(response_json(make_response(generation)), media_type="application/json")


def _add_accounting_route(app: FastAPI, gateway: Gateway) -> None:
    @app.get(
        "/v1/accounting",
        responses={400: ERRORS[400], 401: ERRORS[401], **OTHER_ERRORS},
        summary="Usage and cost of requests, device utilisation, and whether targets are met",
    )
    async def get_accounting(
        token: BearerToken,
        window: Annotated[float | None, Query(gt=0, le=MINUTES_KEPT * MINUTE, description=WINDOW)] = None,
        latest: Annotated[
            int, Query(ge=0, le=1000, description="How many single requests to list, newest first.")
        ] = 0,
    ) -> AccountingReport:
        require_admin(token, gateway.settings.admin_key)
        await asyncio.to_thread(gateway.reporter.deliver)
        return await gateway.ledger.report(window, latest)


def _add_model_routes(app: FastAPI, gateway: Gateway) -> None:
    description = describe_model(gateway.model, created=int(time.time()))

    async def describe() -> Model:
        denoiser = (await gateway.dispatcher.status()).get("denoise")
        edits = any(getattr(route, "path", "") == EDITS_PATH for route in app.routes)
        attention = denoiser.attention if denoiser else None
        return description.model_copy(update={"attention": attention, "edits": edits})

    @app.get("/v1/models", summary="The served models")
    async def list_models() -> ModelList:
        return ModelList(data=[await describe()])

    @app.get("/v1/models/{model_id:path}", responses={404: ERRORS[404], **OTHER_ERRORS}, summary="One model")
    async def get_model(model_id: str) -> Model:
        check_model(model_id, gateway.model)
        return await describe()

    @app.get("/v1/curve", summary="Time per amount of work, stage by stage", responses={503: ERRORS[503]})
    async def get_curve() -> Curves:
        return describe_curves(await gateway.dispatcher.status(), gateway.model, gateway.settings)


def _add_health_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/livez", summary="The gateway is alive")
    async def livez() -> dict[str, bool]:
        return {"alive": True}

    @app.get(
        "/readyz",
        responses={503: {"model": Readiness}},
        summary="Every stage has drawn a warm-up image and answers",
    )
    async def readyz(response: Response) -> Readiness:
        report = await gateway.warm_up.report()
        response.status_code = 200 if report.ready else 503
        return report

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        summary="Prometheus metrics of this gateway's requests and of the stages' work",
    )
    async def expose_metrics() -> Response:
        await gateway.dispatcher.status()  # sets the metrics of the stages that answer
        with contextlib.suppress(Exception):  # the other metrics are served without the ledger's
            snapshot = await gateway.ledger.snapshot()
            gateway.metrics.observe_snapshot(snapshot, (await gateway.ledger.report(None, 0)).mfu)
        return Response(gateway.metrics.expose(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI) -> None:
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
    """The first fault of a query string; bodies are validated by `parse_request`."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = str(fault["loc"][-1])
    return _respond(request, InvalidRequest(f"{name}: {fault['msg']}.", name))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors, which are about routes and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = _respond(
            request, MethodNotAllowed(f"{request.method} is not allowed here; allowed: {allowed}.")
        )
        response.headers["allow"] = allowed
        return response
    return _respond(request, RouteNotFound() if error.status_code == 404 else ServiceError(), error)
