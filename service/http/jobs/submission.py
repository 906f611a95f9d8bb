"""Answers a request at once, or as a job; one with an Idempotency-Key is a job that its caller waits for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from safelight.service.errors import InvalidRequest, JobsOff
from safelight.service.http.generation import Exchange, ImagePlan, admit_images, describe_plan, wish_of
from safelight.service.http.image_links import plan_links
from safelight.service.http.image_requests import answer_images
from safelight.service.http.jobs.answers import JobAnswers
from safelight.service.http.jobs.preferences import (
    APPLIED,
    RESPOND_ASYNC,
    asks_for_job,
    idempotency_key,
)
from safelight.service.http.jobs.schemas import JobObject
from safelight.service.http.reading.adjustments import HEADER
from safelight.service.http.request_body import unless_gone
from safelight.service.jobs.job import Job, JobWork, Submission
from safelight.service.jobs.queue import JobQueue
from safelight.service.setting_types import names_in
from safelight.service.settings import Settings

WEBHOOK = "x-safelight-webhook"
ACCEPTED: dict[str, Any] = {
    "model": JobObject,
    "description": "The job, to requests with the header `Prefer: respond-async`",
}


@dataclass(frozen=True)
class SentContent:
    """What a client sent, by which the same request is known: however its form or JSON was written.

    Attributes:
        kind: `generation` or `edit`.
        fields: The fields that are no files.
        files: The files.
    """

    kind: str
    fields: Mapping[str, object]
    files: tuple[bytes | None, ...] = ()

    def digest(self) -> str:
        """SHA-256 in hexadecimal digits."""
        files = [None if file is None else hashlib.sha256(file).hexdigest() for file in self.files]
        text = json.dumps([self.kind, self.fields, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


async def answer_request(
    request: Request, plan: ImagePlan, exchange: Exchange, sent: SentContent
) -> Response:
    """Answer a request for images in the way that its headers ask for. Raises `ServiceError`."""
    is_job, key = asks_for_job(request), idempotency_key(request)
    if not is_job and key is None:
        return await answer_images(request, plan, exchange)
    queue = exchange.gateway.jobs
    if queue is None:
        raise JobsOff()
    if plan.request.stream:
        raise InvalidRequest(
            "stream: the answer to a job or a request with an Idempotency-Key is not streamed; leave stream "
            "out. A job's own address streams its progress.",
            "stream",
        )
    describe_plan(exchange, plan)
    wish_of(exchange, plan)  # refuses a priority that the key may not have
    links = await plan_links(plan.request, plan.asked_model, exchange.gateway, exchange.base_url)
    submission = _make_submission(request, plan, exchange, sent, key, is_interactive=not is_job)
    job = await queue.submit(submission, partial(_check_quotas, exchange, plan))
    exchange.log["job"] = job.id
    exchange.record.is_deferred = True  # the images are in the record of the job
    answers = JobAnswers(exchange.gateway, exchange.base_url)
    if is_job:
        return await _accept(answers, job)
    job = await _wait(request, queue, job)
    response, adjusted = await answers.images(
        job, has_links=links.store is not None, has_files=not links.is_required
    )
    headers = {HEADER: adjusted} if adjusted else None
    return Response(response, headers=headers, media_type="application/json")


async def _wait(request: Request, queue: JobQueue, job: Job) -> Job:
    """The job when it is done; it goes on without a client that goes away, who may ask again.

    Raises the error that it ended with.
    """
    return await unless_gone(request, queue.wait(job))


async def _accept(answers: JobAnswers, job: Job) -> Response:
    """The answer to a request that has become a job."""
    body = (await answers.describe(job)).model_dump_json()
    headers = {"location": answers.path(job.id), APPLIED: RESPOND_ASYNC}
    return Response(body, 202, headers=headers, media_type="application/json")


async def _check_quotas(exchange: Exchange, plan: ImagePlan) -> None:
    """Raise the error of a key whose quotas have no room now; they are reserved when the job is drawn."""
    await admit_images(exchange, plan)
    caller, access = exchange.caller, exchange.gateway.access
    if access is not None and caller.reservation is not None:
        reservation, caller.reservation = caller.reservation, None
        await access.settle(reservation, (), 0.0, has_ended_early=False)


def _make_submission(
    request: Request,
    plan: ImagePlan,
    exchange: Exchange,
    sent: SentContent,
    key: str | None,
    is_interactive: bool,
) -> Submission:
    """The job of a request.

    Args:
        request: Its headers may name a receiver.
        plan: What is drawn.
        exchange: Says whose it is.
        sent: What the client sent.
        key: Its idempotency key.
        is_interactive: Whether it waits.
    """
    caller = exchange.caller
    return Submission(
        caller="" if caller.key is None else caller.key.id,
        caller_name="" if caller.key is None else caller.key.spec.name,
        request_id=exchange.record.request_id,
        kind=sent.kind,
        model=plan.model.id,
        work=make_work(plan),
        digest=sent.digest(),
        user=exchange.record.user,
        upload=plan.upload,
        idempotency_key=key,
        webhook=None if is_interactive else find_receiver(request, exchange.gateway.settings),
        is_interactive=is_interactive,
    )


def make_work(plan: ImagePlan) -> JobWork:
    """What a job draws."""
    upload = plan.upload
    return JobWork(
        tuple(plan.params),
        plan.output,
        tuple(adjustment.model_dump() for adjustment in plan.reading.adjustments),
        None if upload is None else upload.size,
        () if upload is None else upload.sizes,
        deadline_ms=plan.request.deadline_ms,
        priority=plan.request.priority or 0,
    )


def find_receiver(request: Request, settings: Settings) -> str | None:
    """The URL that is told the end of a job or batch. Raises `InvalidRequest`."""
    text = request.headers.get(WEBHOOK) or settings.webhook_url
    if not text:
        return None
    if not settings.webhook_origins:
        raise InvalidRequest(f"{WEBHOOK}: there are no webhooks here (webhook_origins).", WEBHOOK)
    from safelight.service.jobs.receivers import BadReceiver, parse_receiver

    try:
        return str(parse_receiver(text, names_in(settings.webhook_origins)))
    except BadReceiver as error:
        raise InvalidRequest(f"{WEBHOOK}: the receiver {error}.", WEBHOOK) from None
