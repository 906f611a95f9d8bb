"""From a parsed request to its images: the way of every route that draws.

All of them are admitted, recorded, logged, traced and charged here, and so alike.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from safelight.pipeline.params import GenerationParams
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_links import LinkPlan, plan_links, store_images
from safelight.service.http.schemas import ImageRequest, Usage
from safelight.service.http.translation import make_output, make_params, make_usage
from safelight.service.messages import DecodeResult, ImageFormat, RequestContext
from safelight.service.settings import Settings
from safelight.service.telemetry.tracing import LiveSpan
from safelight.service.usage.records import RequestRecorder, record_request


@dataclass(frozen=True)
class OpenRequest:
    """A request for images that is being answered.

    Attributes:
        gateway: What answers it.
        record: Its usage record, which is written when it ends.
        span: Its trace.
        log: The fields of its log line.
        base_url: What links begin with.
    """

    gateway: Gateway
    record: RequestRecorder
    span: LiveSpan
    log: MutableMapping[str, Any]
    base_url: str


@dataclass(frozen=True)
class Generation:
    """The images of a request.

    Attributes:
        params: Of each image.
        output: The format of all.
        results: The images, in order.
        links: To each image, if the request asked for links.
        has_files: Whether the answer holds the images themselves.
        usage: What they cost.
    """

    params: list[GenerationParams]
    output: ImageFormat
    results: list[DecodeResult]
    links: list[str] | None
    has_files: bool
    usage: Usage


@contextmanager
def open_request(request: Request, gateway: Gateway, base_url: str) -> Iterator[OpenRequest]:
    """Record and trace an HTTP request for images, from before its body is read until the block ends."""
    log = request.state.request_log
    log["model"] = gateway.model.id
    request_id, parent_span = request.state.request_id, request.headers.get("traceparent")
    with (
        record_request(request_id, gateway.model.id, gateway.record) as record,
        gateway.tracing.span(
            "generate", parent_span, model=gateway.model.id, request_id=record.request_id
        ) as span,
    ):
        yield OpenRequest(gateway, record, span, log, base_url)


async def generate_images(image_request: ImageRequest, opened: OpenRequest) -> Generation:
    """Draw the images of a request, store them if it asks for links, and set their usage in its record.

    Raises `InvalidParams` or `ServiceError`.
    """
    gateway, record = opened.gateway, opened.record
    params, output = make_params(image_request, gateway.model), make_output(image_request)
    record.num_images = len(params)
    opened.log.update(_describe(params, gateway.settings))
    opened.span.set(
        images=len(params), steps=params[0].num_steps, size=f"{params[0].width}x{params[0].height}"
    )
    plan = await plan_links(image_request, gateway, opened.base_url)
    context = RequestContext(record.id, opened.span.traceparent, record.request_id)
    results = await gateway.dispatcher.generate(params, output, context)
    links = await store_images(plan, [result.image for result in results], output.format, record)
    record.image_usages = tuple(result.usage for result in results)
    usage = make_usage(results, params, gateway.model, record.seconds, record.store)
    _log_usage(opened, plan, usage)
    return Generation(params, output, results, links, not plan.is_required, usage)


def _log_usage(opened: OpenRequest, plan: LinkPlan, usage: Usage) -> None:
    opened.log["queue_seconds"] = round(usage.safelight.queue_seconds, 4)
    if plan.store is not None:
        opened.log["store_seconds"] = round(usage.safelight.store_seconds, 4)


def _describe(params: list[GenerationParams], settings: Settings) -> dict[str, Any]:
    """What the log line says about the request; the prompt only if the settings say so."""
    first = params[0]
    fields: dict[str, Any] = {
        "images": len(params),
        "size": f"{first.width}x{first.height}",
        "steps": first.num_steps,
    }
    return fields | {"prompt": first.prompt} if settings.log_prompts else fields
