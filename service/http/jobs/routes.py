"""`/v1/images/jobs`: show, list and cancel jobs, follow them, and get their images."""

from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse
from starlette.requests import Request

from safelight.service.http.caller import caller_of
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_files import FIXED_HEADERS, IMAGE
from safelight.service.http.jobs.answers import PATH, JobAnswers
from safelight.service.http.jobs.events import EVENT_STREAM, HEADERS, job_events
from safelight.service.http.jobs.schemas import JobList, JobObject, State
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.http.public_url import base_url
from safelight.service.jobs.queue import JobQueue

ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: ERRORS[status] for status in (400, 404, 503)},
    **OTHER_ERRORS,
}
MAX_PAGE = 100


def add_job_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes, where there are jobs."""
    if gateway.jobs is not None:
        _add_list(app, gateway, gateway.jobs)
        _add_job(app, gateway, gateway.jobs)
        _add_content(app, gateway, gateway.jobs)


def _add_list(app: FastAPI, gateway: Gateway, jobs: JobQueue) -> None:
    @app.get(PATH, summary="The caller's jobs, the newest first", responses=ANSWERS)
    async def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = 20,
        after: Annotated[
            str | None, Query(max_length=40, description="The last job of the page before.")
        ] = None,
        state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.")] = None,
    ) -> JobList:
        store = (await jobs.open()).store
        page, has_more = await store.list_page(caller_id(request), limit, after, state or ())
        return await _answers(request, gateway).describe_list(page, has_more)


def _add_job(app: FastAPI, gateway: Gateway, jobs: JobQueue) -> None:
    @app.get(
        PATH + "/{job_id}",
        summary="A job, or with `Accept: text/event-stream` its progress as events",
        response_model=JobObject,
        responses={200: {"content": EVENT_STREAM}, **ANSWERS},
    )
    async def get_job(request: Request, job_id: str) -> Response:
        answers, caller = _answers(request, gateway), caller_id(request)
        job = await (await jobs.open()).store.get(job_id, caller)
        if EventSourceResponse.media_type in request.headers.get("accept", ""):
            return EventSourceResponse(job_events(jobs, answers, job), headers=HEADERS)
        body = (await answers.describe(job)).model_dump_json()
        return Response(body, media_type="application/json")

    @app.delete(PATH + "/{job_id}", summary="Cancel a job, also while it is drawn", responses=ANSWERS)
    async def cancel_job(request: Request, job_id: str) -> JobObject:
        return await _answers(request, gateway).describe(await jobs.cancel(job_id, caller_id(request)))


def _add_content(app: FastAPI, gateway: Gateway, jobs: JobQueue) -> None:
    @app.get(
        PATH + "/{job_id}/content",
        summary="One image of a job that is done",
        response_class=Response,
        responses={200: IMAGE | {"description": "The image"}, 409: ERRORS[409], **ANSWERS},
    )
    async def get_content(
        request: Request,
        job_id: str,
        index: Annotated[int, Query(ge=0, description="Which image, from 0.")] = 0,
    ) -> Response:
        job = await (await jobs.open()).store.get(job_id, caller_id(request))
        image, name = await _answers(request, gateway).image(job, index)
        headers = FIXED_HEADERS | {"cache-control": "private", "etag": f'"{name.digest}"'}
        return Response(image, headers=headers, media_type=name.media_type)


def caller_id(request: Request) -> str:
    """By which a caller's jobs are kept: the id of its API key, empty on a service without keys."""
    key = caller_of(request).key
    return "" if key is None else key.id


def _answers(request: Request, gateway: Gateway) -> JobAnswers:
    return JobAnswers(gateway, base_url(request, gateway.settings))
