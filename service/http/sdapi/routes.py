"""The routes of `/sdapi/v1`."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from safelight.pipeline.engine.image_metadata import parameters_text
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import Exchange, ImagePlan, generate_images, open_exchange
from safelight.service.http.openapi import GENERATION_ERRORS, OTHER_ERRORS
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.request_body import read_json_object, unless_gone
from safelight.service.http.sdapi.fields import (
    describe_info,
    describe_parameters,
    encode_images,
)
from safelight.service.http.sdapi.jobs import Jobs
from safelight.service.http.sdapi.plans import plan_img2img, plan_txt2img
from safelight.service.http.sdapi.samplers import list_samplers, list_schedulers
from safelight.service.http.sdapi.schemas import (
    DrawResponse,
    NamedItem,
    Progress,
    Sampler,
    Scheduler,
    SdModel,
    Upscaler,
    edit_schema,
    generation_schema,
    json_body,
)

PREFIX = "/sdapi/v1"
ReadPlan = Callable[[Mapping[str, object], Gateway], ImagePlan]
MakeSchema = Callable[[ModelNames], dict[str, Any]]
# Lists of things that there are none of here. Programs ask for them at start and take an error for no server.
EMPTY_LISTS = ("latent-upscale-modes", "sd-vae", "loras", "hypernetworks", "prompt-styles", "face-restorers")


def add_sdapi_routes(app: FastAPI, gateway: Gateway) -> None:
    """Answer the programs that speak AUTOMATIC1111's API, by the same stages, limits and records."""
    jobs = Jobs(gateway.progress)
    _add_drawing(app, gateway, jobs)
    _add_job_routes(app, jobs)
    _add_lists(app, gateway)
    _add_options(app, gateway)


def _add_drawing(app: FastAPI, gateway: Gateway, jobs: Jobs) -> None:
    def add(name: str, make_schema: MakeSchema, read_plan: ReadPlan, limit: int, summary: str) -> None:
        @app.post(
            f"{PREFIX}/{name}",
            response_model=DrawResponse,
            responses=GENERATION_ERRORS | {409: OTHER_ERRORS["default"]},
            openapi_extra=gateway.openapi_extras.add(lambda: json_body(make_schema(gateway.names))),
            summary=summary,
            operation_id=name,
        )
        async def draw(request: Request) -> Response:
            with open_exchange(request, gateway, "", name) as exchange:
                body = await read_json_object(request, limit, gateway.settings.body_seconds)
                return await _draw(request, exchange, jobs, body, read_plan(body, gateway))

    settings = gateway.settings
    add("txt2img", generation_schema, plan_txt2img, settings.max_body_bytes, "Draw as AUTOMATIC1111 does")
    add("img2img", edit_schema, plan_img2img, settings.max_upload_bytes, "Edit as AUTOMATIC1111 does")


async def _draw(
    request: Request, exchange: Exchange, jobs: Jobs, body: Mapping[str, object], plan: ImagePlan
) -> Response:
    """Answer one request for images.

    Args:
        request: The request.
        exchange: Its record.
        jobs: The requests under way.
        body: Its body.
        plan: What is drawn for it.
    """
    drawing, model_id = generate_images(plan, exchange), plan.model.id
    work = jobs.run(drawing, _caller(request), model_id, len(plan.params), plan.params[0].steps_taken)
    generation = await unless_gone(request, work)
    infotexts = [parameters_text(params, model_id) for params in generation.params]
    answer = DrawResponse(
        images=encode_images(generation, body.get("send_images") is not False),
        parameters=describe_parameters(generation.params),
        info=describe_info(generation, model_id, infotexts),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _add_job_routes(app: FastAPI, jobs: Jobs) -> None:
    @app.get(f"{PREFIX}/progress", summary="How far this caller's images are")
    async def progress(request: Request) -> Progress:
        return jobs.progress(_caller(request))

    @app.post(f"{PREFIX}/interrupt", summary="End this caller's images that are under way in this gateway")
    async def interrupt(request: Request) -> dict[str, Any]:
        jobs.interrupt(_caller(request))
        return {}


def _caller(request: Request) -> str:
    """Who asks: requests of one caller see and interrupt each other.

    `X-Forwarded-For` is not read: anyone can write it, and so end the work of others.
    """
    address = request.client.host if request.client else ""
    return "\n".join((address, request.headers.get("authorization", "")))


def _add_lists(app: FastAPI, gateway: Gateway) -> None:
    @app.get(f"{PREFIX}/sd-models", summary="The served models, the default first")
    async def sd_models() -> list[SdModel]:
        ids = [model.id for model in gateway.names.models]
        return [SdModel(title=name, model_name=name, filename=name) for name in ids]

    @app.get(f"{PREFIX}/samplers", summary="The default model's solvers")
    async def samplers() -> list[Sampler]:
        return [Sampler(**sampler) for sampler in list_samplers(gateway.model)]

    @app.get(f"{PREFIX}/schedulers", summary="The default model's timestep spacings")
    async def schedulers() -> list[Scheduler]:
        return [Scheduler(**scheduler) for scheduler in list_schedulers(gateway.model)]

    @app.get(f"{PREFIX}/upscalers", summary="There are none")
    async def upscalers() -> list[Upscaler]:
        return [Upscaler(name="None")]

    for name in EMPTY_LISTS:
        app.get(f"{PREFIX}/{name}", summary="There are none", operation_id=name)(_empty_list())


def _empty_list() -> Callable[[], Any]:
    async def answer() -> list[NamedItem]:
        return []

    return answer


def _add_options(app: FastAPI, gateway: Gateway) -> None:
    @app.get(f"{PREFIX}/options", summary="The default model, as an option")
    async def get_options() -> dict[str, Any]:
        return {
            "sd_model_checkpoint": gateway.model.id,
            "sd_checkpoint_hash": "",
            "samples_format": "png",
            "CLIP_stop_at_last_layers": 1,
        }

    @app.post(
        f"{PREFIX}/options",
        responses={200: {"content": {"application/json": {"schema": {"type": "null"}}}}},
        summary="Accepted and ignored: requests say the model in override_settings, and nothing is set",
    )
    async def set_options() -> None:
        return None
