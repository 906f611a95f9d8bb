"""The tool `generate_image` at `/mcp`, for agents that speak the Model Context Protocol.

It is there if the extra `mcp` is installed. Every call is a request of its own: any gateway answers it.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from safelight.pipeline.catalog.model_info import (
    MAX_GUIDANCE_SCALE,
    MAX_SEED,
    MAX_STEPS,
    MIN_GUIDANCE_SCALE,
    MIN_STEPS,
)
from safelight.pipeline.errors import InvalidParams
from safelight.service.errors import InvalidRequest, ServiceError, ShuttingDown, as_service_error
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import (
    Exchange,
    Generation,
    ImagePlan,
    generate_images,
    open_exchange,
    plan_images,
)
from safelight.service.http.image_requests import read_image_request
from safelight.service.http.public_url import base_url
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.request_log import describe_error
from safelight.service.http.schemas import MAX_IMAGES, ImageRequest
from safelight.service.http.translation import size_names
from safelight.service.http.trusted_hosts import TrustedHosts
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

TOOL = "generate_image"
PROGRESS_SECONDS = 1.0  # between two reports
Context = ServerRequestContext[Any, Request]


class McpEndpoint:
    """An ASGI app with one tool."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._hosts = TrustedHosts(gateway.settings)
        self._manager: StreamableHTTPSessionManager | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Answer requests within the block."""
        server: Server[Any] = Server(
            "safelight", on_list_tools=self._list_tools, on_call_tool=self._call_tool, title="Safelight"
        )
        self._manager = StreamableHTTPSessionManager(
            server, stateless=True, max_request_body_size=self._gateway.settings.max_body_bytes
        )
        try:
            async with self._manager.run():
                yield
        finally:
            self._manager = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gateway.access is None:  # also where others reach the service, and its routes ask no host
            self._hosts.check_host(Request(scope))
        if self._manager is None:
            raise ShuttingDown()
        await self._manager.handle_request(scope, receive, send)

    async def _list_tools(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[describe_tool(self._gateway.names)])

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name != TOOL:
            raise MCPError(types.INVALID_PARAMS, f"There is no tool {params.name[:100]!r}, only {TOOL}.")
        request = context.request
        assert request is not None  # over HTTP there is one
        try:
            base = base_url(request, self._gateway.settings)
            with open_exchange(request, self._gateway, base) as exchange:
                reading = read_image_request(request, self._gateway, params.arguments or {}, exchange.record)
                _refuse_other_answers(reading.request)
                plan = plan_images(reading)
                generation = await self._generate(plan, exchange, context)
        except (ServiceError, InvalidParams) as error:
            answer = as_service_error(error)
            request.state.request_log.update(describe_error(error, answer))
            return types.CallToolResult(content=[types.TextContent(text=str(answer))], is_error=True)
        return describe_generation(generation)

    async def _generate(self, plan: ImagePlan, exchange: Exchange, context: Context) -> Generation:
        reports = asyncio.ensure_future(self._report_progress(plan, context))
        try:
            generation = await generate_images(plan, exchange)
        finally:
            await cancel_and_wait(reports)
        await context.session.report_progress(1.0, 1.0, "drawn")
        return generation

    async def _report_progress(self, plan: ImagePlan, context: Context) -> None:
        """Tell the caller how far its images are, as far as earlier ones show; a report never falls back."""
        started, reported = time.perf_counter(), -1.0
        while True:
            elapsed = time.perf_counter() - started
            share, _ = self._gateway.progress.estimate(plan.model.id, elapsed, plan.params[0].num_steps)
            if share > reported:
                await context.session.report_progress(share, 1.0, f"drawing {len(plan.params)} image(s)")
                reported = share
            await asyncio.sleep(PROGRESS_SECONDS)


def _refuse_other_answers(request: ImageRequest) -> None:
    """Raise `InvalidRequest` if the images are to be stored or streamed: the tool returns them."""
    if request.response_format == "url":
        raise InvalidRequest("response_format: the tool returns the images; leave it out.", "response_format")
    if request.stream:
        raise InvalidRequest("stream: the tool returns the images; leave it out.", "stream")


def describe_tool(names: ModelNames) -> types.Tool:
    """The tool, with what the served models allow, the first's defaults, and a choice if there is one."""
    model, ids = names.model, [model.id for model in names.models]
    sizes = dict.fromkeys(size for model in names.models for size in size_names(model))
    properties = {
        **_model_choice(ids),
        "prompt": {"type": "string", "description": "What the image shows."},
        "negative_prompt": {"type": "string", "description": "What it should not show."},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES, "description": "How many images."},
        "size": {
            "type": "string",
            "enum": ["auto", *sizes],
            "description": "Width and height in pixels.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_SEED,
            "description": "The same seed gives the same image.",
        },
        "num_inference_steps": {
            "type": "integer",
            "minimum": MIN_STEPS,
            "maximum": MAX_STEPS,
            "description": f"Denoising steps; default {model.num_steps}.",
        },
        "guidance_scale": {
            "type": "number",
            "minimum": MIN_GUIDANCE_SCALE,
            "maximum": MAX_GUIDANCE_SCALE,
            "description": f"How closely the image follows the prompt; default {model.guidance_scale:g}.",
        },
        "output_format": {"type": "string", "enum": ["png", "webp", "jpeg"], "description": "Default png."},
    }
    return types.Tool(
        name=TOOL,
        title="Generate an image",
        description=f"Draw images from a text with the model {' or '.join(ids)}. Returns the images.",
        input_schema={"type": "object", "properties": properties, "required": ["prompt"]},
        annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


def _model_choice(ids: Sequence[str]) -> dict[str, Any]:
    """The property that chooses the model, if there is a choice."""
    choice = {"type": "string", "enum": list(ids), "description": f"Default {ids[0]}."}
    return {"model": choice} if len(ids) > 1 else {}


def describe_generation(generation: Generation) -> types.CallToolResult:
    """The images as content, with a sentence on what was drawn; the structured content is its cost."""
    cost, first = generation.usage.safelight, generation.params[0]
    text = f"{len(generation.params)} image(s) of {first.width}x{first.height} pixels, seed {first.seed}."
    if cost.corrected_words:
        pairs = ", ".join(f"{typed} as {read}" for typed, read in cost.corrected_words.items())
        text += f" Misspelt words were read as known ones: {pairs}."
    if cost.unknown_words:
        text += f" The model does not know these words: {', '.join(cost.unknown_words)}."
    images = [
        types.ImageContent(
            data=base64.b64encode(result.image).decode("ascii"), mime_type=f"image/{generation.output.format}"
        )
        for result in generation.results
    ]
    return types.CallToolResult(
        content=[*images, types.TextContent(text=text)], structured_content=cost.model_dump(mode="json")
    )
