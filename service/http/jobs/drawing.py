"""Draws a job as any other request: admitted, recorded, logged, traced and charged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from safelight.pipeline.params import BACKGROUND
from safelight.service.errors import JobsOff, as_service_error
from safelight.service.http.caller import make_recorder, share_of
from safelight.service.http.edits.params import source_adjustments, with_source_size
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import Generation
from safelight.service.http.image_response import make_response
from safelight.service.http.schemas import Adjustment
from safelight.service.http.translation import make_usage
from safelight.service.image_store.names import ImageName
from safelight.service.jobs.drawing import Drawing, End
from safelight.service.jobs.job import Job, JobResult
from safelight.service.messages import DecodeResult, RequestContext
from safelight.service.promises import NO_WISH, Wish
from safelight.service.usage.records import RequestRecorder, StoreUsage, record_request

if TYPE_CHECKING:
    from safelight.service.keys.api_key import ApiKey

logger = logging.getLogger(__name__)


async def draw_job(gateway: Gateway, drawing: Drawing, end: End) -> None:
    """Draw the images of a job, store them and end it.

    Raises:
        LeaseLost: The job is not this gateway's any more.
        ServiceError: It cannot be drawn now, or not at all.
    """
    job = drawing.job
    key = await _find_key(gateway, job)
    recorder = make_recorder(job.request_id, job.model, key)
    recorder.user, recorder.num_images = job.user, job.num_images
    promises = gateway.dispatcher.promises
    wish = promises.wish(job.work.deadline_ms, job.work.priority) if job.is_interactive else NO_WISH
    async with _quotas(gateway, drawing, key, recorder):
        with _logged(job, recorder), record_request(recorder, gateway.record):
            facts = {"model": job.model, "request_id": job.request_id, "job": job.id}
            with gateway.tracing.span("job", None, **facts) as span:
                context = RequestContext(
                    record_id=recorder.id,
                    traceparent=span.traceparent,
                    request_id=job.request_id,
                    model=job.model,
                    share=share_of(key) if job.batch is None else BACKGROUND,
                    terms=promises.terms(wish, job.model, time.time() - job.created, job.num_images),
                )
                await _draw(gateway, drawing, end, recorder, context, wish)


async def _draw(
    gateway: Gateway,
    drawing: Drawing,
    end: End,
    recorder: RequestRecorder,
    context: RequestContext,
    wish: Wish,
) -> None:
    job, work = drawing.job, drawing.job.work
    model = gateway.backends.find(job.model).model
    drawing.steps_done = _progress(gateway, job, recorder)
    results = await gateway.dispatcher.generate(work.params, work.output, context, drawing.upload, job.digest)
    names = await _store(gateway, job, results, recorder)
    params = list(work.params)
    adjustments = [Adjustment.model_validate(adjustment) for adjustment in work.adjustments]
    if drawing.upload is not None:
        params = with_source_size(params, results)
        adjustments += source_adjustments(results[0].usage.source)
    recorder.promise = gateway.dispatcher.promises.outcome(wish, model.id, recorder.seconds, results)
    usage = make_usage(
        results, params, model, recorder.seconds, adjustments, recorder.store, recorder.promise
    )
    generation = Generation(model, params, work.output, [], [], False, usage, tuple(adjustments))
    response = make_response(generation).model_dump(mode="json", exclude={"data"})
    await end(JobResult(tuple(map(str, names)), response))
    recorder.image_usages = tuple(result.usage for result in results)  # only of those that somebody gets
    gateway.progress.observe(model.id, recorder.seconds, params[0].steps_taken)
    if gateway.access is not None:
        gateway.access.observe(model.id, params, recorder.image_usages)


def _progress(gateway: Gateway, job: Job, recorder: RequestRecorder) -> Any:
    """Estimates the steps that are done, by the speed of the requests before."""

    def steps_done() -> int:
        share, _ = gateway.progress.estimate(job.model, recorder.seconds, job.work.params[0].steps_taken)
        return int(share * job.steps)

    return steps_done


async def _store(
    gateway: Gateway, job: Job, results: Sequence[DecodeResult], recorder: RequestRecorder
) -> list[ImageName]:
    """Store the images before the job says that they are there. Raises `StoreFailed`."""
    store, expires, format = gateway.image_store, math.ceil(job.expires), job.work.output.format
    if store is None:
        raise JobsOff()
    started, images = time.perf_counter(), [result.image for result in results]
    names = [ImageName.of_job(image, format, expires, job.id, index) for index, image in enumerate(images)]
    num_bytes = 0
    try:
        await store.save_named(names, images)
        num_bytes = sum(map(len, images))
    finally:
        recorder.store += StoreUsage(time.perf_counter() - started, num_bytes)
    return names


async def _find_key(gateway: Gateway, job: Job) -> ApiKey | None:
    """The API key of the job's caller. Raises `InvalidKey` if it does not hold any more."""
    if not job.caller or gateway.access is None:
        return None
    return await gateway.access.get(job.caller)


@asynccontextmanager
async def _quotas(
    gateway: Gateway, drawing: Drawing, key: ApiKey | None, recorder: RequestRecorder
) -> AsyncIterator[None]:
    """Reserve what the job will use of its key's quotas, and count at the end what it has used.

    Raises `ForbiddenModel` or `LimitReached`.
    """
    access = gateway.access
    if access is None or key is None:
        yield
        return
    job = drawing.job
    reservation = await access.reserve(key, job.model, job.work.params, [])
    is_cancelled = True
    try:
        yield
        is_cancelled = False
    except Exception:  # what failed is not charged
        is_cancelled = False
        raise
    finally:
        has_ended_early = is_cancelled and not drawing.is_given_back
        await access.settle(reservation, recorder.image_usages, recorder.seconds, has_ended_early)


@contextmanager
def _logged(job: Job, recorder: RequestRecorder) -> Iterator[None]:
    """Write a log line for an attempt at a job, however it ends."""
    fields: dict[str, Any] = {"id": job.request_id, "job": job.id, "attempt": job.attempt}
    fields |= {"model": job.model, "images": job.num_images, "steps": job.work.params[0].steps_taken}
    if job.caller:
        fields |= {"key": job.caller, "key_name": job.caller_name}
    level, code = logging.INFO, "ok"
    try:
        yield
    except Exception as error:
        level, code = logging.WARNING, as_service_error(error).code
        fields["cause"] = f"{type(error).__name__}: {error}"[:1000]
        raise
    except BaseException:
        code = "cancelled"
        raise
    finally:
        line = fields | {"code": code, "seconds": round(recorder.seconds, 4)}
        logger.log(level, "job", extra={"fields": line})
