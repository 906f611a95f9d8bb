"""`/v1/batches`: make, show, list and cancel batches."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.batches.batch import Batch, BatchRequest
from safelight.service.batches.queue import BatchQueue
from safelight.service.batches.stored_file import INPUT_PURPOSE
from safelight.service.errors import InvalidRequest
from safelight.service.http.batches.descriptions import describe_batch, describe_batches
from safelight.service.http.batches.file_routes import add_file_routes, kept_seconds
from safelight.service.http.batches.schemas import BatchList, BatchObject, NewBatch
from safelight.service.http.caller import caller_of
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.jobs.routes import caller_id
from safelight.service.http.jobs.submission import find_receiver
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.http.operator_bodies import describe_body, read_body
from safelight.service.http.public_url import base_url

PATH = "/v1/batches"
MAX_PAGE = 100
ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: ERRORS[status] for status in (400, 404, 503)},
    **OTHER_ERRORS,
}


def add_batch_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes of files and batches, where there are jobs."""
    if gateway.batches is not None:
        add_file_routes(app, gateway, gateway.batches)
        _add_batches(app, gateway, gateway.batches)
        _add_batch(app, gateway.batches)


def _add_batches(app: FastAPI, gateway: Gateway, batches: BatchQueue) -> None:
    @app.post(
        PATH,
        response_model=BatchObject,
        responses={**{status: ERRORS[status] for status in (408, 413, 415, 429)}, **ANSWERS},
        openapi_extra=describe_body(NewBatch),
        summary="Make a batch of the requests in a file",
    )
    async def create_batch(request: Request) -> Response:
        settings, caller = gateway.settings, caller_id(request)
        body = await read_body(request, settings, NewBatch)
        parts = await batches.open()
        file = await parts.files.get(body.input_file_id, caller)
        if file.purpose != INPUT_PURPOSE:
            raise InvalidRequest("input_file_id: its purpose must be batch.", "input_file_id")
        key = caller_of(request).key
        batch = await batches.submit(
            BatchRequest(
                caller=caller,
                caller_name="" if key is None else key.spec.name,
                endpoint=body.endpoint,
                input_file=file.id,
                metadata=body.metadata,
                base_url=base_url(request, settings),
                webhook=find_receiver(request, settings),
                output_seconds=kept_seconds(body.output_expires_after, settings),
            )
        )
        request.state.request_log["batch"] = batch.id
        described = describe_batch(batch, {})
        return Response(described.model_dump_json(), media_type="application/json")

    @app.get(PATH, summary="The caller's batches, the newest first", responses=ANSWERS)
    async def list_batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = 20,
        after: Annotated[str | None, Query(max_length=64, description="The last batch before.")] = None,
    ) -> BatchList:
        parts = await batches.open()
        page, has_more = await parts.batches.list_page(caller_id(request), limit, after)
        return describe_batches(page, await parts.lines.counts([batch.id for batch in page]), has_more)


def _add_batch(app: FastAPI, batches: BatchQueue) -> None:
    async def describe(batch: Batch) -> BatchObject:
        counts = await (await batches.open()).lines.counts([batch.id])
        return describe_batch(batch, counts[batch.id])

    @app.get(PATH + "/{batch_id}", summary="A batch", responses=ANSWERS)
    async def get_batch(request: Request, batch_id: str) -> BatchObject:
        return await describe(await (await batches.open()).batches.get(batch_id, caller_id(request)))

    @app.post(PATH + "/{batch_id}/cancel", summary="Cancel a batch; what is drawn is kept", responses=ANSWERS)
    async def cancel_batch(request: Request, batch_id: str) -> BatchObject:
        return await describe(await batches.cancel(batch_id, caller_id(request)))
