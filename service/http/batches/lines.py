"""The lines of a batch over HTTP: what one of the input draws, and what one of the output says."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from safelight.pipeline.errors import InvalidParams
from safelight.service.batches.batch import Batch
from safelight.service.batches.input_lines import InputLine
from safelight.service.errors import (
    ForbiddenModel,
    ImageNotStored,
    InvalidRequest,
    ModelNotFound,
    ServiceError,
    as_service_error,
)
from safelight.service.http.edits.routes import plan_edits
from safelight.service.http.edits.uploads import split_fields
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.generation import ImagePlan, check_texts, plan_images
from safelight.service.http.image_links import plan_links
from safelight.service.http.jobs.answers import JobAnswers
from safelight.service.http.jobs.submission import SentContent, make_work
from safelight.service.http.reading.request import ReadRequest, read_request
from safelight.service.http.schemas import Adjustment
from safelight.service.jobs.job import (
    EDIT,
    GENERATION,
    Job,
    JobError,
    JobState,
    JobWork,
    Line,
    Submission,
)
from safelight.service.messages import ImageFormat
from safelight.service.usage.records import hash_user

KINDS = {"/v1/images/generations": GENERATION, "/v1/images/edits": EDIT}
# Of lines that were not drawn: the error's code and message.
NOT_DRAWN = {
    JobState.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    JobState.CANCELLED: ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


async def read_line(gateway: Gateway, batch: Batch, line: InputLine) -> Line:
    """What a line draws, with every choice made; a line with a fault says what a request would be told."""
    await asyncio.sleep(0)  # other requests go between
    try:
        plan, sent = _plan(gateway, KINDS[batch.endpoint], line.body)
        check_texts(gateway.deny_list, plan.params[0])
        await _check_key(gateway, batch, plan.model.id)
        links = await plan_links(plan.request, plan.asked_model, gateway, batch.base_url)
        has_links, has_files = links.store is not None, not links.is_required
        work = replace(make_work(plan), has_links=has_links, has_files=has_files)
    except (InvalidRequest, InvalidParams) as error:
        return _faulty_line(gateway, batch, line, as_service_error(error))
    user = hash_user(plan.request.safety_identifier or plan.request.user or "")
    submission = _submission(batch, line, plan.model.id, work, sent.digest())
    return Line(line.number, line.custom_id, replace(submission, user=user, upload=plan.upload))


async def write_line(gateway: Gateway, batch: Batch, job: Job) -> bytes:
    """The line of the output for one that has ended. Raises `StoreFailed`."""
    entry: dict[str, Any] = {
        "id": f"batch_req_{job.id.removeprefix('job_')}",
        "custom_id": job.custom_id,
        "response": None,
        "error": None,
    }
    if job.state in NOT_DRAWN and job.result is None:
        code, message = NOT_DRAWN[job.state]
        entry["error"] = {"code": code, "message": message}
    else:
        status, body = await _answer(gateway, batch, job)
        entry["response"] = {"status_code": status, "request_id": job.request_id, "body": body}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def _answer(gateway: Gateway, batch: Batch, job: Job) -> tuple[int, object]:
    """The status and body that the request of a line would have been answered with."""
    if job.error is not None:
        error = job.error.as_service_error()
        return error.status, error.body()
    answers, work = JobAnswers(gateway, batch.base_url), job.work
    try:
        text, _ = await answers.images(job, has_links=work.has_links, has_files=work.has_files)
    except ImageNotStored as missing:  # the image store was full, and has deleted the oldest images
        return missing.status, missing.body()
    return 200, json.loads(text)


def _plan(gateway: Gateway, kind: str, body: Mapping[str, object]) -> tuple[ImagePlan, SentContent]:
    """What the body of a line asks for. Raises `InvalidRequest` or `InvalidParams`."""

    def read(fields: Mapping[str, object], adjustments: tuple[Adjustment, ...] = ()) -> ReadRequest:
        reading = read_request(fields, gateway.names, gateway.settings.strict)
        return replace(reading, adjustments=(*adjustments, *reading.adjustments))

    if kind == EDIT:
        plan, sent = plan_edits(split_fields(body.items()), read)
    else:
        plan, sent = plan_images(read(body), body.get("model")), SentContent(GENERATION, body)
    if plan.request.stream:
        raise InvalidRequest("stream: a request in a batch is not streamed; leave stream out.", "stream")
    return plan, sent


async def _check_key(gateway: Gateway, batch: Batch, model: str) -> None:
    """Raise `ForbiddenModel` if the key of a batch may not use a model, `InvalidKey` if it has ended."""
    if gateway.access is None or not batch.caller:
        return
    key = await gateway.access.get(batch.caller)
    if not key.may_use(model):
        raise ForbiddenModel(f"model: this API key may not use {model!r}.", "model")


def _faulty_line(gateway: Gateway, batch: Batch, line: InputLine, error: ServiceError) -> Line:
    """A line that is not drawn."""
    name, model = line.body.get("model"), gateway.model.id
    if isinstance(name, str):
        with suppress(ModelNotFound):
            model = gateway.names.find(name).id
    submission = _submission(batch, line, model, JobWork((), ImageFormat()), "")
    return Line(line.number, line.custom_id, submission, JobError.of(error))


def _submission(batch: Batch, line: InputLine, model: str, work: JobWork, digest: str) -> Submission:
    return Submission(
        caller=batch.caller,
        caller_name=batch.caller_name,
        request_id=f"{batch.id}-{line.number}",
        kind=KINDS[batch.endpoint],
        model=model,
        work=work,
        digest=digest,
    )
