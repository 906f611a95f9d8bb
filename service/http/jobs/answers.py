"""What a job is answered as: its object, its images, one image."""

import base64
import math
import time
from dataclasses import dataclass

from safelight.service.errors import ImageNotStored, Interrupted, InvalidRequest, JobNotDone, JobsOff
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_links import FILES_PATH
from safelight.service.http.image_response import response_json
from safelight.service.http.jobs.schemas import JobList, JobObject
from safelight.service.http.reading.adjustments import header_value
from safelight.service.http.schemas import ErrorDetail, Image, ImageResponse
from safelight.service.image_store.names import ImageName
from safelight.service.image_store.store import ImageStore
from safelight.service.jobs.job import Job, JobResult, JobState
from safelight.service.jobs.queue import JobQueue

PATH = "/v1/images/jobs"


@dataclass(frozen=True)
class JobAnswers:
    """Describes jobs.

    Attributes:
        gateway: What answers.
        base_url: What links begin with.
    """

    gateway: Gateway
    base_url: str

    def path(self, job_id: str) -> str:
        """The address of a job."""
        return f"{self.base_url}{PATH}/{job_id}"

    async def describe(self, job: Job, in_list: bool = False) -> JobObject:
        """The job as JSON; in a list without its place in the queue. Raises `StoreFailed`."""
        position = None
        if job.state is JobState.QUEUED and not in_list:
            position = await (await self._jobs.open()).store.position(job)
        drawing = self._jobs.find_drawing(job)
        return JobObject(
            id=job.id,
            kind="edit" if job.kind == "edit" else "generation",
            state=job.state.value,
            model=job.model,
            n=job.num_images,
            created_at=int(job.created),
            started_at=None if job.started is None else int(job.started),
            ended_at=None if job.ended is None else int(job.ended),
            expires_at=math.ceil(job.expires),
            position=position,
            forecast_seconds=None if in_list else self._forecast(job, position),
            steps=job.steps,
            steps_done=job.steps_done if drawing is None else drawing.steps_done(),
            attempts=job.attempt,
            request_id=job.request_id,
            result=None if job.result is None else await self._response(job.result, True, False),
            error=None
            if job.error is None
            else ErrorDetail(
                message=job.error.message, type=job.error.type, param=job.error.param, code=job.error.code
            ),
        )

    async def describe_list(self, jobs: list[Job], has_more: bool) -> JobList:
        """A page of jobs."""
        return JobList(
            data=[await self.describe(job, in_list=True) for job in jobs],
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=has_more,
        )

    async def images(self, job: Job, has_links: bool, has_files: bool) -> tuple[str, str]:
        """The answer to the request of a job that has ended, and the header of its adjustments.

        Raises the error that it ended with, `ImageNotStored` or `StoreFailed`.
        """
        response = await self._response(result_of(job), has_links, has_files)
        adjusted = response.usage.safelight.adjusted
        return response_json(response), header_value(tuple(adjusted)) if adjusted else ""

    async def image(self, job: Job, index: int) -> tuple[bytes, ImageName]:
        """One image of a job. Raises as `images` does, and `JobNotDone` for one that is open."""
        result = result_of(job)
        if not 0 <= index < len(result.names):
            raise InvalidRequest(f"index: the job has {len(result.names)} images, from 0.", "index")
        name = parse_name(result.names[index])
        return await self._store.load(name), name

    @property
    def _jobs(self) -> JobQueue:
        if self.gateway.jobs is None:
            raise JobsOff()
        return self.gateway.jobs

    @property
    def _store(self) -> ImageStore:
        assert self.gateway.image_store is not None  # else there are no jobs
        return self.gateway.image_store

    async def _response(self, result: JobResult, has_links: bool, has_files: bool) -> ImageResponse:
        """The answer as it was when the job was done, with the images."""
        names = [parse_name(text) for text in result.names]
        signer = await self._store.signer() if has_links else None
        images = []
        for name in names:
            file = base64.b64encode(await self._store.load(name)).decode("ascii") if has_files else None
            query = None if signer is None else signer.query(str(name), name.expires)
            url = None if query is None else f"{self.base_url}{FILES_PATH}/{name}?{query}"
            images.append(Image(b64_json=file, url=url))
        response = ImageResponse.model_validate(result.response | {"data": []})
        return response.model_copy(update={"data": images})

    def _forecast(self, job: Job, position: int | None) -> float | None:
        """Seconds until the job is done, by the speed of this gateway's latest requests."""
        if not job.is_open:
            return None
        elapsed = 0.0 if job.started is None or job.state is JobState.QUEUED else time.time() - job.started
        steps = job.work.params[0].steps_taken
        _, alone = self.gateway.progress.estimate(job.model, 0.0, steps)
        if not alone:
            return None
        rounds = (position or 0) // self.gateway.settings.job_concurrency
        return max(alone - elapsed, 0.0) + rounds * alone


def result_of(job: Job) -> JobResult:
    """The result of a job. Raises the error that it ended with, or `JobNotDone`."""
    if job.error is not None:
        raise job.error.as_service_error()
    if job.state is JobState.CANCELLED:
        raise Interrupted("The job was cancelled.")
    if job.state is JobState.EXPIRED:
        raise JobNotDone("The job has expired: its images are not kept any more.")
    if job.result is None:
        raise JobNotDone(f"The job is {job.state}; its images are there when it is done.")
    return job.result


def parse_name(text: str) -> ImageName:
    """The name of a stored image. Raises `ImageNotStored`."""
    name = ImageName.parse(text)
    if name is None:
        raise ImageNotStored()
    return name
