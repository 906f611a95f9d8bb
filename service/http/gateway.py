"""The HTTP face: a FastAPI app over a backend. Routes are thin; what they mean is said elsewhere."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
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
from safelight.service.http.auth import require_admin
from safelight.service.http.middleware import Envelope, error_response
from safelight.service.http.openapi import ERRORS, OF_DRAWING, image_request_body
from safelight.service.http.readiness import WarmUp
from safelight.service.http.request_body import read_json_body, unless_gone
from safelight.service.http.schemas import Curves, ImageResponse, Model, ModelList, Readiness
from safelight.service.http.translation import (
    check_model,
    describe_curves,
    describe_model,
    make_images,
    make_output,
    make_response,
    make_usage,
)
from safelight.service.http.validation import parse_request
from safelight.service.messages import RequestContext
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.telemetry.tracing import Tracing
from safelight.service.usage.client import LedgerClient, LocalLedger
from safelight.service.usage.ledger import MINUTE, MINUTES_KEPT
from safelight.service.usage.records import Sink, UsageRecord, record_request
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.reporter import Outbox, UsageReporter

WINDOW = "The last so many seconds, and up to a minute more; all since the start without it."


def build_gateway(
    backend: Backend,
    model: ModelInfo,
    settings: Settings,
    books: LedgerClient | None = None,
    proxied: bool = False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The app; its own `books` if there are no common ones, `proxied` when Serve's own proxy stands before it."""
    metrics = Metrics()
    books = books or LocalLedger(settings)
    outbox = Outbox()
    reporter = UsageReporter(outbox.collect, books.send)
    dispatcher = RequestDispatcher(backend, metrics, settings, books)
    warm_up = WarmUp(dispatcher, model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.ensure_future(warm_up.run())
        reporter.start()
        yield
        await cancel_and_wait(warming)
        await asyncio.to_thread(reporter.stop)

    app = FastAPI(title="Safelight", summary="Text in, image out.", lifespan=lifespan, redirect_slashes=False)
    app.state.dispatcher = dispatcher
    _add_image_route(
        app,
        dispatcher,
        lambda record: _settle(record, metrics, outbox),
        model,
        settings,
        tracing or Tracing(),
    )
    _add_accounting_route(app, books, reporter, settings)
    _add_model_routes(app, dispatcher, describe_model(model, created=int(time.time())), model)
    _add_health_routes(app, dispatcher, warm_up, metrics, books)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ServiceError, _answer_error)
    app.add_exception_handler(InvalidParams, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_wrong_query)
    app.add_middleware(Envelope, proxied=proxied)
    return app


def _settle(record: UsageRecord, metrics: Metrics, outbox: Outbox) -> None:
    metrics.record(record)
    outbox.put(record)


def _add_image_route(
    app: FastAPI,
    dispatcher: RequestDispatcher,
    sink: Sink,
    model: ModelInfo,
    settings: Settings,
    tracing: Tracing,
) -> None:
    @app.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        responses=OF_DRAWING,
        openapi_extra=image_request_body(model),
        summary="Draw images from a text",
    )
    async def generate(request: Request) -> Response:
        # Parsed here and not by FastAPI, so that one record_request sees every way out, malformed bodies included.
        with (
            record_request(request.state.request_id, model.id, sink) as opened,
            tracing.span(
                "generate", request.headers.get("traceparent"), model=model.id, request_id=opened.request_id
            ) as span,
        ):
            asked = parse_request(
                await read_json_body(request, settings.max_body_bytes, settings.body_seconds)
            )
            images, output = make_images(asked, model), make_output(asked)
            opened.num_images = len(images)
            span.set(
                images=len(images),
                steps=images[0].num_steps,
                size=f"{images[0].width}x{images[0].height}",
            )
            drawn = await unless_gone(
                request, dispatcher.generate(images, output, RequestContext(opened.id, span.traceparent))
            )
            opened.images = tuple(image.usage for image in drawn)
            usage = make_usage(drawn, images, model, opened.seconds)
            answer = make_response(drawn, images, output, usage)
            return Response(answer.model_dump_json(), media_type="application/json")


def _add_accounting_route(
    app: FastAPI, books: LedgerClient, reporter: UsageReporter, settings: Settings
) -> None:
    @app.get(
        "/v1/accounting",
        responses={401: ERRORS[401]},
        summary="What was drawn for whom, what it cost, and whether targets are met",
    )
    async def get_accounting(
        request: Request,
        window: Annotated[float | None, Query(gt=0, le=MINUTES_KEPT * MINUTE, description=WINDOW)] = None,
        latest: Annotated[
            int, Query(ge=0, le=1000, description="How many single requests to list, the newest first.")
        ] = 0,
    ) -> AccountingReport:
        require_admin(request, settings.admin_key)
        await asyncio.to_thread(reporter.deliver)
        return await books.report(window, latest)


def _add_model_routes(
    app: FastAPI, dispatcher: RequestDispatcher, described: Model, model: ModelInfo
) -> None:
    async def describe_now() -> Model:
        denoiser = (await dispatcher.status()).get("denoise")
        return described.model_copy(update={"attention": denoiser.attention if denoiser else None})

    @app.get("/v1/models", summary="The models served here")
    async def list_models() -> ModelList:
        return ModelList(data=[await describe_now()])

    @app.get("/v1/models/{model_id}", responses={404: ERRORS[404]}, summary="One model")
    async def get_model(model_id: str) -> Model:
        check_model(model_id, model)
        return await describe_now()

    @app.get("/v1/curve", summary="What each stage's work costs on its machine", responses={503: ERRORS[503]})
    async def get_curve() -> Curves:
        return describe_curves(await dispatcher.status())


def _add_health_routes(
    app: FastAPI, dispatcher: RequestDispatcher, warm_up: WarmUp, metrics: Metrics, books: LedgerClient
) -> None:
    @app.get("/livez", summary="The gateway is alive")
    async def livez() -> dict[str, bool]:
        return {"alive": True}

    @app.get(
        "/readyz",
        responses={503: {"model": Readiness}},
        summary="Every stage has drawn a warm-up image and answers",
    )
    async def readyz(response: Response) -> Readiness:
        report = await warm_up.report()
        response.status_code = 200 if report.ready else 503
        return report

    @app.get("/metrics", summary="Prometheus metrics: this gateway's requests, and the stages' work")
    async def expose_metrics() -> Response:
        await dispatcher.status()
        with contextlib.suppress(Exception):  # without the ledger the rest is still worth saying
            metrics.observe_snapshot(await books.snapshot(), (await books.report(None, 0)).mfu)
        return Response(metrics.expose(), media_type=CONTENT_TYPE_LATEST)


async def _answer_error(_: Request, error: Exception) -> Response:
    return error_response(as_service_error(error))


async def _answer_wrong_query(_: Request, error: Exception) -> Response:
    """The first fault of a query, in one sentence; bodies are read elsewhere."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name = str(fault["loc"][-1])
    return error_response(InvalidRequest(f"{name}: {fault['msg']}.", name))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors are about routes."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        answer = error_response(
            MethodNotAllowed(f"{request.method} is not allowed here; allowed: {allowed}.")
        )
        answer.headers["allow"] = allowed
        return answer
    return error_response(RouteNotFound() if error.status_code == 404 else ServiceError())
