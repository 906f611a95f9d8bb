"""The `/sdapi/v1` requests under way in this gateway, for its routes `progress` and `interrupt`."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from safelight.service.errors import Interrupted
from safelight.service.http.progress import ProgressEstimator
from safelight.service.http.sdapi.schemas import Progress, ProgressState
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """A request that is being answered.

    Attributes:
        caller: Who asked: only the same caller sees and interrupts it.
        model_id: Of the model that draws them.
        num_images: How many images it asks for.
        num_steps: Of each image.
        started: When, by the process's clock.
        task: Draws the images.
        is_interrupted: Whether its caller has asked to end it.
    """

    caller: str
    model_id: str
    num_images: int
    num_steps: int
    started: float
    task: "asyncio.Future[Any]"
    is_interrupted: bool = False


class Jobs:
    """Runs the work of requests so that it can be watched and interrupted."""

    def __init__(self, estimator: ProgressEstimator):
        self._estimator = estimator
        self._jobs: list[Job] = []

    async def run(
        self, work: Coroutine[Any, Any, T], caller: str, model_id: str, num_images: int, num_steps: int
    ) -> T:
        """The result of `work`, unless it is interrupted.

        Args:
            work: Draws the images.
            caller: Who asked for them.
            model_id: Of the model that draws them.
            num_images: How many they are.
            num_steps: Of each image.

        Raises:
            Interrupted: The caller has ended the work.
        """
        task = asyncio.ensure_future(work)
        job = Job(caller, model_id, num_images, num_steps, time.perf_counter(), task)
        self._jobs.append(job)
        try:
            await asyncio.wait({task})
            if job.is_interrupted and task.cancelled():
                raise Interrupted()
            return task.result()
        finally:
            self._jobs.remove(job)
            await cancel_and_wait(task)

    def interrupt(self, caller: str) -> int:
        """End the caller's work; returns how many requests that were."""
        jobs = [job for job in self._jobs if job.caller == caller and not job.is_interrupted]
        for job in jobs:
            job.is_interrupted = True
            job.task.cancel()
        return len(jobs)

    def progress(self, caller: str) -> Progress:
        """How far the caller's oldest request is, and how many images the caller waits for."""
        jobs = [job for job in self._jobs if job.caller == caller]
        if not jobs:
            return Progress(progress=0.0, eta_relative=0.0, state=ProgressState())
        job = jobs[0]
        elapsed = time.perf_counter() - job.started
        share, seconds_left = self._estimator.estimate(job.model_id, elapsed, job.num_steps)
        state = ProgressState(
            interrupted=job.is_interrupted,
            job="txt2img",
            job_count=sum(job.num_images for job in jobs),
            sampling_step=int(share * job.num_steps),
            sampling_steps=job.num_steps,
        )
        return Progress(progress=share, eta_relative=seconds_left, state=state)
