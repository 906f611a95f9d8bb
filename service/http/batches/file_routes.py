"""`/v1/files`: upload the input of batches, and get their output."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.requests import Request

from safelight.service.batches.queue import BatchQueue
from safelight.service.errors import InvalidRequest, WrongContentType
from safelight.service.http.batches.descriptions import describe_file, describe_files
from safelight.service.http.batches.lines import write_line
from safelight.service.http.batches.schemas import (
    MAX_SECONDS,
    MIN_SECONDS,
    DeletedFile,
    ExpiresAfter,
    File,
    FileList,
    Purpose,
)
from safelight.service.http.edits.multipart import read_named_form
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.jobs.routes import caller_id
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.http.request_body import content_type, read_body
from safelight.service.settings import Settings

PATH = "/v1/files"
FORM = "multipart/form-data"
FORM_BYTES = 64 << 10  # of a form beside its file
MAX_PAGE = 10_000
JSONL = "application/jsonl"
ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: ERRORS[status] for status in (400, 404, 503)},
    **OTHER_ERRORS,
}
LINES = {"description": "Lines of JSON", "content": {JSONL: {"schema": {"type": "string"}}}}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "Lines of JSON (docs/batches.md).",
                        },
                        "purpose": {"const": "batch"},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_SECONDS,
                            "maximum": MAX_SECONDS,
                        },
                    },
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                }
            }
        },
    }
}


def add_file_routes(app: FastAPI, gateway: Gateway, batches: BatchQueue) -> None:
    """Add the routes."""
    _add_upload(app, gateway, batches)
    _add_list(app, batches)
    _add_file(app, batches)
    _add_content(app, gateway, batches)


def _add_upload(app: FastAPI, gateway: Gateway, batches: BatchQueue) -> None:
    settings = gateway.settings

    @app.post(
        PATH,
        response_model=File,
        responses={**{status: ERRORS[status] for status in (408, 413, 415, 429)}, **ANSWERS},
        openapi_extra=UPLOAD,
        summary="Upload the input of a batch",
    )
    async def upload_file(request: Request) -> Response:
        name, content, seconds = await _read_upload(request, settings)
        parts = await batches.open()
        file = await parts.files.add(caller_id(request), name, content, seconds)
        return Response(describe_file(file).model_dump_json(), media_type="application/json")


def _add_list(app: FastAPI, batches: BatchQueue) -> None:
    @app.get(PATH, summary="The caller's files", responses=ANSWERS)
    async def list_files(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = MAX_PAGE,
        after: Annotated[str | None, Query(max_length=64, description="The last file before.")] = None,
        order: Annotated[
            Literal["asc", "desc"], Query(description="By age; desc: the newest first.")
        ] = "desc",
        purpose: Annotated[Purpose | None, Query(description="Only files with this purpose.")] = None,
    ) -> FileList:
        store = (await batches.open()).files
        page = await store.list_page(caller_id(request), limit, after, purpose, order == "asc")
        return describe_files(*page)


def _add_file(app: FastAPI, batches: BatchQueue) -> None:
    @app.get(PATH + "/{file_id}", summary="A file", responses=ANSWERS)
    async def get_file(request: Request, file_id: str) -> File:
        return describe_file(await (await batches.open()).files.get(file_id, caller_id(request)))

    @app.delete(PATH + "/{file_id}", summary="Delete a file", responses=ANSWERS)
    async def delete_file(request: Request, file_id: str) -> DeletedFile:
        await (await batches.open()).files.delete(file_id, caller_id(request))
        return DeletedFile(id=file_id)


def _add_content(app: FastAPI, gateway: Gateway, batches: BatchQueue) -> None:
    @app.get(
        PATH + "/{file_id}/content",
        summary="What a file holds",
        response_class=Response,
        responses={200: LINES, **ANSWERS},
    )
    async def get_content(request: Request, file_id: str) -> Response:
        parts, caller = await batches.open(), caller_id(request)
        file = await parts.files.get(file_id, caller)
        if file.batch is None:
            return Response(await parts.files.content(file), media_type=JSONL)
        batch = await parts.batches.get(file.batch, caller)
        is_output = file.id == batch.output_file

        async def lines() -> AsyncIterator[bytes]:
            async for job in parts.lines.of(batch.id, is_output):
                yield await write_line(gateway, batch, job)

        return StreamingResponse(lines(), media_type=JSONL)


async def _read_upload(request: Request, settings: Settings) -> tuple[str, bytes, float]:
    """The name and content of a file that is uploaded, and how long it is kept. Raises `InvalidRequest`."""
    if content_type(request) != FORM:
        raise WrongContentType(f"The body must be a form ({FORM}): name it in content-type.")
    body = await read_body(request, settings.max_file_bytes + FORM_BYTES, settings.body_seconds)
    entries = await read_named_form(request.headers["content-type"], body)
    fields = {name: value for name, value, _ in entries}
    files = [(filename, value) for name, value, filename in entries if name == "file"]
    filename, content = files[0] if len(files) == 1 else ("", None)
    if not isinstance(content, bytes):
        raise InvalidRequest("file is required: one file.", "file")
    if fields.get("purpose") != "batch":
        raise InvalidRequest("purpose must be batch: files are kept for nothing else here.", "purpose")
    if len(content) > settings.max_file_bytes:
        message = f"file: it may have {settings.max_file_bytes:,} bytes (max_file_bytes)."
        raise InvalidRequest(message, "file")
    return filename.replace("\0", "") or "file.jsonl", content, _kept_seconds(fields, settings)


def _kept_seconds(fields: dict[str, Any], settings: Settings) -> float:
    """How long a file is kept: as its caller says, and no longer than all."""
    wish = {name: fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
    if wish == {"anchor": None, "seconds": None}:
        return settings.file_seconds
    try:
        return kept_seconds(ExpiresAfter.model_validate(wish), settings)
    except ValidationError as error:
        field = f"expires_after[{error.errors()[0]['loc'][0]}]"
        message = f"{field}: the anchor must be created_at, and seconds from 3600 to 2592000."
        raise InvalidRequest(message, field) from None


def kept_seconds(expires_after: ExpiresAfter | None, settings: Settings) -> float:
    """How long a file is kept."""
    wish = math.inf if expires_after is None else float(expires_after.seconds)
    return min(wish, settings.file_seconds)
