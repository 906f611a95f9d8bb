"""A gateway for the page's tests: a backend that draws, and streams and edits until the gateway has them.

The two routes follow OpenAI's events and forms; `StreamStub` is to be removed when the gateway has them.
"""

import asyncio
import base64
import email.message
import email.parser
import email.policy
import io
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from PIL import Image, ImageDraw
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.pipeline.params import GenerationParams
from safelight.service.errors import ServiceError
from safelight.service.http.gateway import EDITS_PATH
from safelight.service.http.middleware import error_response
from safelight.service.http.translation import make_params, make_usage
from safelight.service.http.validation import parse_request
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    RequestContext,
)
from safelight.service.previews import PreviewSink
from tests.fakes import MODEL, USAGE, FakeBackend

GENERATIONS_PATH = "/v1/images/generations"
EMOJI_MODEL = replace(MODEL, id="emoji-128", sizes=((128, 128), (160, 96)))


def draw_image(params: GenerationParams, amount: float = 1.0) -> bytes:
    """A PNG file whose colour is made from the seed, and of which a disc has the size `amount`."""
    image = Image.new("RGB", (params.width, params.height), "white")
    hue = (params.seed * 47 + params.image_index * 80) % 360
    radius = amount * min(params.width, params.height) * 0.4
    middle = (params.width / 2, params.height / 2)
    ImageDraw.Draw(image).circle(middle, radius, fill=f"hsl({hue}, 75%, 50%)")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class ImageBackend(FakeBackend):
    """A `FakeBackend` whose files are images."""

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        result = await super().generate(params, output, context, source, previews)
        return replace(result, image=draw_image(params))


class StreamStub:
    """Middleware that answers what the gateway does not yet: streams of generations and edits, and edits.

    While `is_stepped`, each event waits for `step`.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.reset()

    def reset(self) -> None:
        self.is_stepped = False
        self.requests: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}  # of the latest edit
        self.disconnected = threading.Event()
        self._steps = asyncio.Semaphore(0)

    def wrap(self, app: FastAPI) -> None:
        """Put the stub in front of `app`."""
        app.add_route(EDITS_PATH, self.edit, methods=["POST"], include_in_schema=False)
        app.add_middleware(_Middleware, stub=self)

    def step(self) -> None:
        """Let one event go; called from the test's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._steps.release)

    async def edit(self, request: Request) -> Response:
        raise AssertionError("the middleware answers edits")

    async def answer(self, request: Request) -> Response | None:
        """The answer to a stream or an edit; None for what the gateway answers."""
        self._loop = asyncio.get_running_loop()
        body = await request.body()
        fields = self._parse(request, body)
        self.requests.append(dict(fields))
        is_edit = request.url.path == EDITS_PATH
        if not is_edit and not fields.get("stream"):
            return None
        num_previews = int(fields.pop("partial_images", 0))
        fields.pop("stream", None)
        fields.pop("strength", None)
        images = make_params(parse_request(json.dumps(fields).encode()), EMOJI_MODEL)
        kind = "image_edit" if is_edit else "image_generation"
        events = self._events(images, kind, num_previews, request)
        return StreamingResponse(events, media_type="text/event-stream")

    def _parse(self, request: Request, body: bytes) -> dict[str, Any]:
        kind = request.headers["content-type"]
        if not kind.startswith("multipart/"):
            fields: dict[str, Any] = json.loads(body)
            return fields
        parser = email.parser.BytesParser(email.message.EmailMessage, policy=email.policy.HTTP)
        form = parser.parsebytes(f"content-type: {kind}\r\n\r\n".encode() + body)
        fields = {}
        self.files = {}
        for part in form.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            if part.get_filename():
                self.files[name] = content
            else:
                text = content.decode()
                fields[name] = text if name in ("prompt", "model", "size", "solver") else json.loads(text)
        return fields

    async def _events(
        self, images: list[GenerationParams], kind: str, num_previews: int, request: Request
    ) -> AsyncIterator[str]:
        try:
            yield ": keep-alive\n\n"
            for number in range(num_previews):
                for index, params in enumerate(images):
                    await self._wait()
                    image = draw_image(params, (number + 1) / (num_previews + 1))
                    yield _event(f"{kind}.partial_image", image, index, partial_image_index=number)
            for index, params in enumerate(images):
                await self._wait()
                if params.prompt == "diverge":
                    fault = ServiceError("The image diverged; try another seed.")
                    yield f"event: error\ndata: {json.dumps(fault.body())}\n\n"
                    return
                result = DecodeResult(draw_image(params), USAGE)
                usage = make_usage([result], [params], EMOJI_MODEL, 2.5).model_dump()
                size = f"{params.width}x{params.height}"
                yield _event(f"{kind}.completed", result.image, index, usage=usage, size=size)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise

    async def _wait(self) -> None:
        if self.is_stepped:
            await self._steps.acquire()


def _event(kind: str, image: bytes, index: int, **others: Any) -> str:
    data = {
        "type": kind,
        "b64_json": base64.b64encode(image).decode(),
        "output_format": "png",
        "image_index": index,
        **others,
    }
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


class _Middleware:
    def __init__(self, app: ASGIApp, stub: StreamStub) -> None:
        self._app, self._stub = app, stub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (GENERATIONS_PATH, EDITS_PATH):
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        try:
            response = await self._stub.answer(request)
        except ServiceError as error:
            response = error_response(error, "stub")
        if response is not None:
            return await response(scope, request.receive, send)
        body = await request.body()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)
