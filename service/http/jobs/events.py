"""The progress of a job as server-sent events: its object whenever that changes, until it has ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from safelight.service.http.jobs.answers import JobAnswers
from safelight.service.http.jobs.schemas import JobObject
from safelight.service.http.streaming import HEADERS as HEADERS
from safelight.service.http.streaming import KEEP_ALIVE_SECONDS
from safelight.service.jobs.job import Job
from safelight.service.jobs.queue import JobQueue

LOOK_SECONDS = 1.0  # between two looks at a job
VOLATILE = {"forecast_seconds"}  # what changes all the time
EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "The events `image_job.STATE`, whose data are the job, whenever it has changed; "
            "after the one of its end the stream ends.",
            "required": ["event", "data"],
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        }
    }
}


async def job_events(jobs: JobQueue, answers: JobAnswers, job: Job) -> AsyncIterator[bytes]:
    """The events of a job from now on."""
    sent: dict[str, Any] | None = None
    silent_since = time.monotonic()
    while True:
        described = await answers.describe(job)
        state = described.model_dump(exclude=VOLATILE)
        if state != sent:
            sent, silent_since = state, time.monotonic()
            yield _event(described)
        elif time.monotonic() - silent_since >= KEEP_ALIVE_SECONDS:
            silent_since = time.monotonic()
            yield KEEPALIVE_COMMENT
        if not job.is_open:
            return
        await asyncio.sleep(LOOK_SECONDS)
        job = await (await jobs.open()).store.get(job.id, job.caller)


def _event(job: JobObject) -> bytes:
    return format_sse_event(data_str=job.model_dump_json(), event=f"image_job.{job.state}")
