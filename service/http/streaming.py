"""Answers images one by one as server-sent events, each after previews of it, as OpenAI's API does."""

import base64
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.params import GenerationParams
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import ClientGone, ServiceError, as_service_error
from safelight.service.http.reading.adjustments import HEADER, header_value
from safelight.service.http.reading.quality import quality_of
from safelight.service.http.reading.request import ReadRequest
from safelight.service.http.request_body import unless_gone
from safelight.service.http.request_log import describe_error
from safelight.service.http.schemas import Usage
from safelight.service.http.translation import make_usage
from safelight.service.image_stream import ImageStream, StreamEvent
from safelight.service.messages import DecodeResult, ImageFormat, Preview, RequestContext, Upload
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.usage.records import RequestRecorder

KEEP_ALIVE_SECONDS = 15.0  # without an event, after which a comment is sent, so that no proxy hangs up
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # no proxy may store or hold back events

Kind = Literal["image_generation", "image_edit"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS = ("partial_image", "completed")


class ImageEvent(BaseModel):
    """What every event of an image says."""

    type: str
    image_index: int = Field(description="Extension: which image of the request, from 0.")
    b64_json: str = Field(description="The image's bytes in base64.")
    created_at: int = Field(description="Unix time of the event.")
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str
    size: str


class PartialImageEvent(ImageEvent):
    """A preview: what the image would be by the step that it has reached."""

    partial_image_index: int = Field(description="From 0; a preview that was dropped leaves a gap.")


class CompletedEvent(ImageEvent):
    """The finished image, with the usage of this image alone."""

    usage: Usage


def _image_event_schemas() -> list[dict[str, Any]]:
    """The schemas of the data of an image's events."""
    partial = PartialImageEvent.model_json_schema()
    whole = ImageEvent.model_json_schema()
    completed = {
        "required": [*whole["required"], "usage"],
        "properties": whole["properties"] | {"usage": {"type": "object", "description": "Of this image."}},
    }
    return [partial, whole | completed]


ERROR_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["message", "type", "param", "code"]},
        "request_id": {"type": "string"},
    },
}
# One event of a streamed answer, for the OpenAPI schema.
EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "With `stream`: the events `image_generation.partial_image` and, once for each "
            "image, `image_generation.completed` (of edits `image_edit.…`), whose data are JSON objects; "
            "`error` in place of what can no longer be drawn.",
            "required": ["event", "data"],
            "properties": {
                "event": {"enum": [*(f"{kind}.{part}" for kind in KINDS for part in PARTS), "error"]},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"anyOf": [*_image_event_schemas(), ERROR_EVENT]},
                },
            },
        }
    }
}


@dataclass(frozen=True)
class StreamedRequest:
    """A request whose images are streamed, and what it keeps open until its last event.

    Attributes:
        request: The HTTP request.
        record: Counts the images that were sent.
        open_request: Writes the usage record and ends the span; the response takes over what it holds.
        images: The parameters of each image; edits get the size of their source.
        output: The format of their files.
        model: The model that draws them.
        reading: What was asked, and in what it was read in another way than it was written.
        upload: Of edits.
    """

    request: Request
    record: RequestRecorder
    open_request: ExitStack
    images: list[GenerationParams]
    output: ImageFormat
    model: ModelInfo
    reading: ReadRequest
    upload: Upload | None = None

    @property
    def kind(self) -> Kind:
        """The first part of the events' types."""
        return "image_generation" if self.upload is None else "image_edit"


class StreamedImages(EventSourceResponse):
    """The response to a streamed request. Its images are drawn from the moment that it is made.

    It is to be opened before it is sent.

    Raises:
        ServiceError: The request was not admitted.
    """

    def __init__(self, streamed: StreamedRequest, dispatcher: RequestDispatcher, context: RequestContext):
        adjustments = streamed.reading.adjustments
        super().__init__((), headers=HEADERS | ({HEADER: header_value(adjustments)} if adjustments else {}))
        self._streamed = streamed
        self._stream = ImageStream(streamed.reading.request.partial_images or 0)
        self._work = dispatcher.start_stream(
            streamed.images, streamed.output, self._stream, context, streamed.upload
        )

    async def open(self) -> None:
        """Wait until the upload of an edit has been read, and take over what the request keeps open.

        Raises:
            ServiceError: The upload was refused, or the client has gone: the request ends here. Later errors
                are events.
        """
        streamed = self._streamed
        try:
            if streamed.upload is not None:
                await unless_gone(streamed.request, self._stream.wait_for_source(self._work))
        except BaseException:
            await cancel_and_wait(self._work)
            raise
        self._open_request = streamed.open_request.pop_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._streamed.request
        try:
            with self._open_request:
                await unless_gone(request, self._send_events(send))
        except ServiceError as error:  # the client was told, or has gone
            request.state.request_log |= describe_error(error.__cause__ or error, error)
        finally:
            await cancel_and_wait(self._work)

    async def _send_events(self, send: Send) -> None:
        """Send all events; raises the request's error after it was sent, too."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        failure: ServiceError | None = None
        try:
            async for event in self._stream.events(self._work, KEEP_ALIVE_SECONDS):
                await self._send_event(event, send)
        except ClientGone:
            raise
        except Exception as error:
            failure = as_service_error(error)
            failure.__cause__ = error if error is not failure else error.__cause__
            await _send_part(send, _error_event(failure, self._streamed.request.state.request_id))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if failure is not None:
            raise failure

    async def _send_event(self, event: StreamEvent | None, send: Send) -> None:
        if event is None:
            await _send_part(send, KEEPALIVE_COMMENT)
            return
        model = self._describe(event)
        await _send_part(send, format_sse_event(data_str=model.model_dump_json(), event=model.type))
        if isinstance(event.content, DecodeResult):
            self._streamed.record.image_usages += (event.content.usage,)

    def _describe(self, event: StreamEvent) -> ImageEvent:
        """The data of an event."""
        streamed, content, params = self._streamed, event.content, event.params
        common: dict[str, Any] = {
            "image_index": params.image_index,
            "b64_json": base64.b64encode(content.image).decode("ascii"),
            "created_at": int(time.time()),
            "output_format": streamed.output.format,
            "quality": quality_of(params.num_steps, streamed.model.num_steps),
            "size": f"{params.width}x{params.height}",
        }
        if isinstance(content, Preview):
            kind = f"{streamed.kind}.partial_image"
            return PartialImageEvent(type=kind, partial_image_index=content.index, **common)
        usage = make_usage(
            [content], [params], streamed.model, streamed.record.seconds, streamed.reading.adjustments
        )
        return CompletedEvent(type=f"{streamed.kind}.completed", usage=usage, **common)


async def _send_part(send: Send, part: bytes) -> None:
    """Send a part of the body. Raises `ClientGone`."""
    try:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    except OSError:  # of servers that say so
        raise ClientGone() from None


def _error_event(error: ServiceError, request_id: str) -> bytes:
    """The event of an error, whose data are those of an error's response."""
    data = {"type": "error", **error.body(), "request_id": request_id}
    return format_sse_event(data_str=json.dumps(data), event="error")
