"""The FastAPI app over a backend.

Routes are thin: validation, translation and dispatching have modules of their own.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.backend import Backend
from safelight.service.batches.batch import Batch
from safelight.service.batches.input_lines import InputLine
from safelight.service.batches.queue import BatchQueue
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import AccountsUnavailable, JobsUnavailable
from safelight.service.http.access import protect_routes
from safelight.service.http.admin.routes import add_key_routes
from safelight.service.http.batches.batch_routes import add_batch_routes
from safelight.service.http.batches.lines import read_line, write_line
from safelight.service.http.connections import limits_of
from safelight.service.http.cors import add_cors
from safelight.service.http.docs import make_app
from safelight.service.http.edits.routes import add_edit_routes
from safelight.service.http.error_answers import add_error_handlers
from safelight.service.http.gateway_parts import Gateway, make_access, make_deny_list, make_image_store
from safelight.service.http.generation import open_exchange, plan_images
from safelight.service.http.image_files import add_file_routes
from safelight.service.http.image_requests import read_image_request
from safelight.service.http.jobs.drawing import draw_job
from safelight.service.http.jobs.routes import add_job_routes
from safelight.service.http.jobs.submission import ACCEPTED, SentContent, answer_request
from safelight.service.http.mcp_route import Endpoint, add_mcp_route, make_mcp_endpoint, running
from safelight.service.http.middleware import Envelope
from safelight.service.http.model_changes import ModelChanges, add_change_routes
from safelight.service.http.openapi import (
    ERRORS,
    GENERATION_ERRORS,
    OTHER_ERRORS,
    OpenApiExtras,
    image_request_body,
)
from safelight.service.http.page.routes import add_page_routes
from safelight.service.http.progress import ProgressEstimator
from safelight.service.http.public_url import base_url
from safelight.service.http.quote import add_quote_route
from safelight.service.http.readiness import WarmUp
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.request_body import read_json_object
from safelight.service.http.request_paths import RequestPaths
from safelight.service.http.schemas import Curves, ImageResponse, Model, ModelList, Readiness
from safelight.service.http.sdapi.routes import add_sdapi_routes
from safelight.service.http.security_schemes import declare_security
from safelight.service.http.server import start_http_server
from safelight.service.http.streaming import EVENT_STREAM
from safelight.service.http.translation import (
    describe_curves,
    describe_model,
    describe_moderation,
)
from safelight.service.jobs.drawing import Drawing, End
from safelight.service.jobs.job import GENERATION, Job, Line
from safelight.service.jobs.queue import JobQueue
from safelight.service.messages import StageStatus
from safelight.service.model_backends import ModelBackends
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.setting_types import names_in
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.telemetry.tracing import Tracing
from safelight.service.usage.client import LedgerClient, LocalLedger
from safelight.service.usage.ledger import MINUTE, MINUTES_KEPT
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.reporter import Outbox, UsageReporter

DRAINED_SECONDS = 1.0  # for answers that are being sent when no image is in flight any more
WINDOW = (
    "Length of the window in seconds, extended to the start of a minute; default: since the accounts began."
)


def build_gateway(
    backend: Backend,
    model: ModelInfo,
    settings: Settings,
    ledger: LedgerClient | None = None,
    proxied: bool = False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The app of one model, whose images `backend` generates; for the others see `build_models_gateway`."""
    return build_models_gateway(ModelBackends.of_one(model, backend), settings, ledger, proxied, tracing)


def build_models_gateway(
    backends: ModelBackends,
    settings: Settings,
    ledger: LedgerClient | None = None,
    proxied: bool = False,
    tracing: Tracing | None = None,
    changes: ModelChanges | None = None,
    listen: Callable[[], socket.socket] | None = None,
) -> FastAPI:
    """The app of any number of models, which may be replaced in `backends` while it runs.

    Args:
        backends: The models and what generates their images.
        settings: The service's settings.
        ledger: The ledger that all gateways share; a local one if None.
        proxied: Whether Serve's proxy is in front, which adds the request id to each response itself.
        tracing: Opens the spans; None for no tracing.
        changes: Adds and removes models; None where they cannot change.
        listen: Returns a listening socket on which the app serves HTTP itself between its startup and its
            shutdown; None where another server runs it.
    """
    gateway = _make_gateway(backends, settings, ledger or LocalLedger(settings), tracing or Tracing())
    mcp_endpoint = make_mcp_endpoint(gateway)
    app = make_app(
        title="Safelight",
        summary="Text in, image out.",
        lifespan=_lifespan(gateway, mcp_endpoint, listen),
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    for add_routes in ROUTES:
        add_routes(app, gateway)
    add_change_routes(app, gateway, changes)
    add_mcp_route(app, mcp_endpoint)
    add_page_routes(app)
    protect_routes(app, gateway)  # after the last route
    declare_security(app, gateway)
    on_models_change(app)
    add_error_handlers(app)
    app.add_middleware(RequestPaths, root_path=settings.root_path)
    app.add_middleware(Envelope, proxied=proxied)
    add_cors(app, names_in(settings.cors_origins))  # the outermost, so that every answer has its headers
    return app


def on_models_change(app: FastAPI) -> None:
    """Bring up to date what a gateway keeps of its models: its metrics' series and its OpenAPI schema."""
    gateway: Gateway = app.state.gateway
    gateway.metrics.serve([model.id for model in gateway.backends.models])
    gateway.openapi_extras.refresh()
    app.openapi_schema = None


def _make_gateway(
    backends: ModelBackends, settings: Settings, ledger: LedgerClient, tracing: Tracing
) -> Gateway:
    """Connect the parts of a gateway."""
    outbox = Outbox()
    metrics = Metrics(outbox)
    dispatcher = RequestDispatcher(backends, metrics, settings, ledger)
    access = make_access(settings)

    async def draw(drawing: Drawing, end: End) -> None:
        await draw_job(gateway, drawing, end)

    async def read(batch: Batch, line: InputLine) -> Line:
        return await read_line(gateway, batch, line)

    async def write(batch: Batch, job: Job) -> bytes:
        return await write_line(gateway, batch, job)

    jobs = JobQueue(settings, draw) if settings.has_jobs else None
    gateway = Gateway(
        backends=backends,
        settings=settings,
        dispatcher=dispatcher,
        warm_up=WarmUp(dispatcher, backends, None if access is None else access.observe),
        metrics=metrics,
        ledger=ledger,
        outbox=outbox,
        reporter=UsageReporter(outbox.collect, ledger.send),
        tracing=tracing,
        image_store=make_image_store(settings),
        progress=ProgressEstimator(),
        openapi_extras=OpenApiExtras(),
        access=access,
        jobs=jobs,
        deny_list=make_deny_list(settings),
        batches=None if jobs is None else BatchQueue(settings, jobs, read, write),
    )
    return gateway


def _lifespan(
    gateway: Gateway, mcp_endpoint: Endpoint | None, listen: Callable[[], socket.socket] | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    access = gateway.access

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(gateway.warm_up.run())]
        if gateway.image_store is not None:
            tasks.append(asyncio.ensure_future(gateway.image_store.run()))
        if gateway.jobs is not None:
            tasks.append(asyncio.ensure_future(gateway.jobs.run()))
        if gateway.batches is not None:
            tasks.append(asyncio.ensure_future(gateway.batches.run()))
        gateway.reporter.start()
        async with (
            running(mcp_endpoint),
            nullcontext() if access is None else access.running(),
            nullcontext() if listen is None else _serving(app, gateway, listen()),
        ):
            yield
            if gateway.batches is not None:
                gateway.batches.stop()
            if gateway.jobs is not None:
                await gateway.jobs.stop()
        await cancel_and_wait(*tasks)
        if gateway.jobs is not None:
            await gateway.jobs.close()
        await asyncio.to_thread(gateway.reporter.stop)

    return lifespan


@asynccontextmanager
async def _serving(app: FastAPI, gateway: Gateway, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app`, and answer at the end what is in flight, as far as the settings allow."""
    server = app.state.server = await start_http_server(app, listener, limits_of(gateway.settings))
    yield
    is_drained = gateway.dispatcher.is_draining
    await server.stop(DRAINED_SECONDS if is_drained else gateway.settings.shutdown_seconds)


def _add_image_route(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        responses={200: {"content": EVENT_STREAM}, 202: ACCEPTED, **GENERATION_ERRORS},
        openapi_extra=gateway.openapi_extras.add(
            lambda: image_request_body(gateway.names, gateway.settings.strict)
        ),
        summary="Draw images from a text",
    )
    async def generate(request: Request) -> Response:
        # The body is parsed here and not by FastAPI, so that open_exchange also records malformed bodies.
        with open_exchange(request, gateway, base_url(request, gateway.settings)) as exchange:
            limit, seconds = gateway.settings.max_body_bytes, gateway.settings.body_seconds
            fields = await read_json_object(request, limit, seconds)
            reading = read_image_request(request, gateway, fields, exchange.record)
            plan = plan_images(reading, fields.get("model"))
            return await answer_request(request, plan, exchange, SentContent(GENERATION, fields))


def _add_accounting_route(app: FastAPI, gateway: Gateway) -> None:
    @app.get(
        "/v1/accounting",
        responses={400: ERRORS[400], 401: ERRORS[401], 503: ERRORS[503], **OTHER_ERRORS},
        summary="Usage and cost of requests, device utilisation, and whether targets are met",
    )
    async def get_accounting(
        window: Annotated[float | None, Query(gt=0, le=MINUTES_KEPT * MINUTE, description=WINDOW)] = None,
        latest: Annotated[
            int, Query(ge=0, le=1000, description="How many single requests to list, newest first.")
        ] = 0,
    ) -> AccountingReport:
        await gateway.deliver_usage()
        try:
            return await gateway.ledger.report(window, latest)
        except Exception as error:  # also of Ray
            raise AccountsUnavailable() from error


def _add_model_routes(app: FastAPI, gateway: Gateway) -> None:
    created: dict[str, int] = {}  # when each model was first listed

    def describe(model: ModelInfo, names: ModelNames, stages: Mapping[str, StageStatus | None]) -> Model:
        denoiser = stages.get("denoise")
        since = created.setdefault(model.id, int(time.time()))
        description = describe_model(model, names, since, denoiser.attention if denoiser else None)
        return description.model_copy(update={"moderation": describe_moderation(gateway.settings)})

    @app.get("/v1/models", summary="The served models, the default first")
    async def list_models() -> ModelList:
        names, stages = gateway.names, await gateway.dispatcher.status_of_all()
        return ModelList(data=[describe(model, names, stages.get(model.id, {})) for model in names.models])

    @app.get("/v1/models/{model_id:path}", responses={404: ERRORS[404], **OTHER_ERRORS}, summary="One model")
    async def get_model(model_id: str) -> Model:
        names = gateway.names
        model = names.find(model_id, gateway.settings.strict)
        return describe(model, names, await gateway.dispatcher.status(model.id))

    @app.get(
        "/v1/curve",
        summary="Time per amount of work of a model, stage by stage",
        responses={404: ERRORS[404], 503: ERRORS[503], **OTHER_ERRORS},
    )
    async def get_curve(
        model: Annotated[str | None, Query(description="A name of the model; default: the first.")] = None,
    ) -> Curves:
        names = gateway.names
        chosen = names.model if model is None else names.find(model, gateway.settings.strict)
        return describe_curves(await gateway.dispatcher.status(chosen.id), chosen, gateway.settings)


def _add_health_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/livez", summary="The gateway is alive")
    async def livez() -> dict[str, bool]:
        return {"alive": True}

    @app.get(
        "/health",
        responses={503: {"model": Readiness}},
        summary="The same as /readyz, under the name that load balancers try",
    )
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
        summary="Prometheus metrics of all requests and of the stages' work, the same at every gateway",
    )
    async def expose_metrics() -> Response:
        await gateway.dispatcher.status_of_all()  # sets the metrics of the stages that answer
        await gateway.deliver_usage()
        if gateway.batches is not None:
            with suppress(JobsUnavailable):  # then the last are shown
                gateway.metrics.observe_batches(*await gateway.batches.counts())
        try:
            snapshot = await gateway.ledger.snapshot()
        except Exception:  # also of Ray; the other metrics are served without the ledger's
            snapshot = None
        gateway.metrics.observe_snapshot(snapshot)
        return Response(gateway.metrics.expose(), media_type=CONTENT_TYPE_LATEST)


ROUTES = (
    _add_image_route,
    add_quote_route,
    add_edit_routes,
    add_file_routes,
    add_job_routes,
    add_batch_routes,
    add_sdapi_routes,
    _add_accounting_route,
    _add_model_routes,
    _add_health_routes,
    add_key_routes,
)
