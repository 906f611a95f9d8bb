"""From a request that has been read to its images: the way of every route that draws.

All of them are admitted, recorded, logged, traced and charged here, and so alike.
"""

import hashlib
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.params import GenerationParams
from safelight.service.errors import ContentRefused, InvalidRequest
from safelight.service.http.caller import Caller, caller_of, make_recorder, share_of
from safelight.service.http.edits.params import source_adjustments, with_source_size
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_links import plan_links, store_images
from safelight.service.http.reading.request import ReadRequest
from safelight.service.http.schemas import Adjustment, ImageRequest, Usage
from safelight.service.http.translation import make_output, make_params, make_usage
from safelight.service.messages import DecodeResult, ImageFormat, RequestContext, Upload
from safelight.service.moderation.deny_list import DenyList
from safelight.service.promises import Wish
from safelight.service.telemetry.tracing import LiveSpan
from safelight.service.usage.records import RequestRecorder, record_request


@dataclass(frozen=True)
class Exchange:
    """A request for images and the answer to it, while it is being made.

    Attributes:
        gateway: What answers it.
        caller: Who sent it.
        record: Its usage record, which is written when it ends.
        span: Its trace.
        log: The fields of its log line.
        base_url: What links begin with.
        closing: Ends record and trace; a streamed answer does so after its last event.
    """

    gateway: Gateway
    caller: Caller
    record: RequestRecorder
    span: LiveSpan
    log: MutableMapping[str, Any]
    base_url: str
    closing: ExitStack


@dataclass(frozen=True)
class ImagePlan:
    """What is drawn for a request.

    Attributes:
        reading: The request.
        asked_model: The model's name as the client wrote it.
        params: Of each image, with every choice made.
        output: The format of all.
        upload: What an edit starts from.
    """

    reading: ReadRequest
    asked_model: object
    params: list[GenerationParams]
    output: ImageFormat
    upload: Upload | None = None

    @property
    def digest(self) -> str:
        """By which the same request is known when it comes again."""
        text = self.request.model_dump_json(exclude_none=True).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(text)
        if self.upload is not None:
            digest.update(self.upload.image)
        return digest.hexdigest()

    @property
    def request(self) -> ImageRequest:
        return self.reading.request

    @property
    def model(self) -> ModelInfo:
        return self.reading.model


@dataclass(frozen=True)
class Generation:
    """The images of a request.

    Attributes:
        model: The model that drew them.
        params: Of each image.
        output: The format of all.
        results: The images, in order.
        links: To each image, if the request asked for links.
        has_files: Whether the answer holds the images themselves.
        usage: What they cost.
        adjustments: What was read, or drawn, in another way than it was asked.
    """

    model: ModelInfo
    params: list[GenerationParams]
    output: ImageFormat
    results: list[DecodeResult]
    links: list[str] | None
    has_files: bool
    usage: Usage
    adjustments: tuple[Adjustment, ...]


@contextmanager
def open_exchange(
    request: Request, gateway: Gateway, base_url: str, action: str = "generate"
) -> Iterator[Exchange]:
    """Record and trace an HTTP request for images, from before its body is read until the block ends.

    Args:
        request: The request.
        gateway: What answers it.
        base_url: What links begin with.
        action: Its name in traces.
    """
    log = request.state.request_log
    # until the request has been read, it is one for the default model
    model_id = log["model"] = gateway.model.id
    request_id, parent_span = request.state.request_id, request.headers.get("traceparent")
    caller = caller_of(request)
    caller.recorder = make_recorder(request_id, model_id, caller.key)
    with ExitStack() as closing:
        record = closing.enter_context(record_request(caller.recorder, gateway.record))
        span = closing.enter_context(
            gateway.tracing.span(action, parent_span, model=model_id, request_id=record.request_id)
        )
        yield Exchange(gateway, caller, record, span, log, base_url, closing)


def plan_images(reading: ReadRequest, asked_model: object = None) -> ImagePlan:
    """What is drawn for a request. Raises `InvalidParams` or `InvalidRequest`."""
    request = reading.request
    return ImagePlan(reading, asked_model, make_params(request, reading.model), make_output(request))


def wish_of(exchange: Exchange, plan: ImagePlan) -> Wish:
    """What a request asks of its promise. Raises `InvalidRequest` for a priority beyond its key's."""
    key, priority = exchange.caller.key, plan.request.priority
    if key is not None and priority is not None and priority > key.spec.max_priority:
        raise InvalidRequest(
            f"priority: this API key may ask for at most {key.spec.max_priority}.", "priority"
        )
    return exchange.gateway.dispatcher.promises.wish(plan.request.deadline_ms, priority)


def request_context(exchange: Exchange, plan: ImagePlan) -> RequestContext:
    """What goes along with the images from stage to stage."""
    record, promises = exchange.record, exchange.gateway.dispatcher.promises
    return RequestContext(
        record_id=record.id,
        traceparent=exchange.span.traceparent,
        request_id=record.request_id,
        model=plan.model.id,
        share=share_of(exchange.caller.key),
        terms=promises.terms(wish_of(exchange, plan), plan.model.id, record.seconds, len(plan.params)),
    )


async def generate_images(plan: ImagePlan, exchange: Exchange) -> Generation:
    """Draw the images, store them if the request asks for links, and set their usage in its record.

    Raises `ServiceError`.
    """
    gateway, record, params = exchange.gateway, exchange.record, plan.params
    describe_plan(exchange, plan)
    wish = wish_of(exchange, plan)
    await admit_images(exchange, plan)
    links = await plan_links(plan.request, plan.asked_model, gateway, exchange.base_url)
    context = request_context(exchange, plan)
    results = await gateway.dispatcher.generate(params, plan.output, context, plan.upload, plan.digest)
    urls = await store_images(links, [result.image for result in results], plan.output.format, record)
    adjustments = plan.reading.adjustments
    if plan.upload is not None:
        params = with_source_size(params, results)
        adjustments = (*adjustments, *source_adjustments(results[0].usage.source))
    record.promise = gateway.dispatcher.promises.outcome(wish, plan.model.id, record.seconds, results)
    usage = make_usage(results, params, plan.model, record.seconds, adjustments, record.store, record.promise)
    record.image_usages = tuple(result.usage for result in results)
    observe_images(exchange, plan.model.id, params, results)
    exchange.log["queue_seconds"] = round(usage.safelight.queue_seconds, 4)
    if links.store is not None:
        exchange.log["store_seconds"] = round(record.store.seconds, 4)
    return Generation(
        plan.model, params, plan.output, results, urls, not links.is_required, usage, adjustments
    )


async def admit_images(exchange: Exchange, plan: ImagePlan) -> None:
    """Check the texts, and reserve what the images will use of the quotas of the request's API key.

    Raises `ContentRefused`, `ForbiddenModel` or `LimitReached`.
    """
    check_texts(exchange.gateway.deny_list, plan.params[0])
    caller, access = exchange.caller, exchange.gateway.access
    if caller.key is not None and access is not None:
        reservation = await access.reserve(caller.key, plan.model.id, plan.params, caller.statuses)
        caller.reservation = reservation


def check_texts(deny_list: DenyList | None, params: GenerationParams) -> None:
    """Raise `ContentRefused` if a text of an image holds what is denied."""
    if deny_list is None:
        return
    for field, text in {"prompt": params.prompt, "negative_prompt": params.negative_prompt}.items():
        if deny_list.matches(text):
            raise ContentRefused(param=field)


def observe_images(
    exchange: Exchange, model: str, params: Sequence[GenerationParams], results: Sequence[DecodeResult]
) -> None:
    """Learn from images that `model` drew how long others will take, and what they will use."""
    gateway = exchange.gateway
    gateway.progress.observe(model, exchange.record.seconds, params[0].steps_taken)
    if gateway.access is not None:
        gateway.access.observe(model, params, [result.usage for result in results])


def describe_plan(exchange: Exchange, plan: ImagePlan) -> None:
    """Say in the record, the trace and the log what is drawn; the prompt only if the settings say so."""
    first = plan.params[0]
    facts: dict[str, Any] = {"images": len(plan.params), "steps": first.steps_taken}
    if plan.upload is None:  # else the size is the upload's, which is not decoded here
        facts["size"] = f"{first.width}x{first.height}"
    exchange.record.num_images = len(plan.params)
    exchange.record.model = facts["model"] = plan.model.id
    exchange.span.set(**facts)
    exchange.log.update(facts)
    if exchange.gateway.settings.log_prompts:
        exchange.log["prompt"] = first.prompt
