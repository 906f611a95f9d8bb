"""Answers images one by one as server-sent events, each after previews of it, as OpenAI's API does."""

import base64
import json
import time
from contextlib import ExitStack
from typing import Any, Literal, get_args

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from safelight.service.errors import ClientGone, ServiceError, as_service_error
from safelight.service.http.edits.params import source_adjustments, with_source_size
from safelight.service.http.generation import (
    Exchange,
    ImagePlan,
    observe_images,
    request_context,
    wish_of,
)
from safelight.service.http.reading.adjustments import HEADER, header_value
from safelight.service.http.reading.quality import quality_of
from safelight.service.http.reading.sizes import size_name
from safelight.service.http.request_body import unless_gone
from safelight.service.http.request_log import describe_error
from safelight.service.http.schemas import Usage
from safelight.service.http.translation import make_usage
from safelight.service.image_stream import ImageStream, StreamEvent
from safelight.service.messages import DecodeResult, Preview
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

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


class StreamedImages(EventSourceResponse):
    """The response to a streamed request. Its images are drawn from the moment that it is made.

    It is to be opened before it is sent.

    Raises:
        ServiceError: The request was not admitted.
    """

    def __init__(self, request: Request, plan: ImagePlan, exchange: Exchange):
        adjustments = plan.reading.adjustments
        super().__init__((), headers=HEADERS | ({HEADER: header_value(adjustments)} if adjustments else {}))
        self._request = request
        self._plan = plan
        self._exchange = exchange
        self._kind: Kind = "image_generation" if plan.upload is None else "image_edit"
        self._closing = ExitStack()  # what the exchange keeps open, from `open` on
        self._stream = ImageStream(plan.request.partial_images or 0)
        self._work = exchange.gateway.dispatcher.start_stream(
            plan.params, plan.output, self._stream, request_context(exchange, plan), plan.upload, plan.digest
        )

    async def open(self) -> None:
        """Wait until the upload of an edit has been read, and take over what the exchange keeps open.

        Raises:
            ServiceError: The upload was refused, or the client has gone: the request ends here. Later errors
                are events.
        """
        try:
            if self._plan.upload is not None:
                await unless_gone(self._request, self._stream.wait_for_source(self._work))
        except BaseException:
            await cancel_and_wait(self._work)
            raise
        self._closing = self._exchange.closing.pop_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._closing:
                await unless_gone(self._request, self._send_events(send))
        except ServiceError as error:  # the client was told, or has gone
            self._request.state.request_log |= describe_error(error.__cause__ or error, error)
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
            await _send_part(send, _error_event(failure, self._request.state.request_id))
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
            self._count(event.content)

    def _count(self, result: DecodeResult) -> None:
        """Record an image that was sent, as `generate_images` does for all of a request."""
        record, log = self._exchange.record, self._exchange.log
        record.image_usages += (result.usage,)
        params = with_source_size(self._plan.params[:1], [result])
        observe_images(self._exchange, self._plan.model.id, params, [result])
        log["queue_seconds"] = round(log.get("queue_seconds", 0.0) + result.usage.queue_seconds, 4)

    def _describe(self, event: StreamEvent) -> ImageEvent:
        """The data of an event."""
        plan, content, params = self._plan, event.content, event.params
        common: dict[str, Any] = {
            "image_index": params.image_index,
            "b64_json": base64.b64encode(content.image).decode("ascii"),
            "created_at": int(time.time()),
            "output_format": plan.output.format,
            "quality": quality_of(params.num_steps, plan.model.num_steps),
            "size": size_name((params.width, params.height)),
        }
        if isinstance(content, Preview):
            kind = f"{self._kind}.partial_image"
            return PartialImageEvent(type=kind, partial_image_index=content.index, **common)
        adjustments = plan.reading.adjustments
        if plan.upload is not None:
            adjustments = (*adjustments, *source_adjustments(content.usage.source))
        record, promises = self._exchange.record, self._exchange.gateway.dispatcher.promises
        wish = wish_of(self._exchange, plan)
        record.promise = promises.outcome(wish, plan.model.id, record.seconds, [content])
        usage = make_usage(
            [content], [params], plan.model, record.seconds, adjustments, promise=record.promise
        )
        return CompletedEvent(type=f"{self._kind}.completed", usage=usage, **common)


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
