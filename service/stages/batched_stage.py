"""What text encoding and decoding share: batches of jobs on one worker thread."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from safelight.service.messages import RequestContext, StageStatus
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.stages.worker import Worker

BACKGROUND_PRIORITY = 2  # after that of images for which somebody waits, which is 0, and of their previews


class StageJob(Protocol):
    """The work for one image."""

    @property
    def context(self) -> RequestContext: ...


Network = TypeVar("Network")
Job = TypeVar("Job", bound=StageJob)
Result = TypeVar("Result")


class BatchedStage(ABC, Generic[Network, Job, Result]):
    """Hosts a network on a worker thread and processes batches of jobs with it.

    Args:
        name: The stage's name in usage reports.
        make_network: Loads the network; called on the worker thread.
    """

    def __init__(self, name: str, make_network: Callable[[], Network]):
        self.meter = UsageMeter(name)
        self._worker = Worker(make_network, self.meter)
        self._status = StageStatus()  # replaced by the worker thread only

    async def run(self, job: Job) -> Result:
        """Process one job by itself."""
        with self.meter.count_jobs(1):
            return (await self.run_batch([job]))[0]

    async def run_batch(self, jobs: Sequence[Job]) -> list[Result]:
        """Process a batch; one result for each job.

        The caller counts the jobs with `meter.count_jobs`, from the moment they arrive.
        """
        is_background = all(job.context.share.is_background for job in jobs)
        priority = BACKGROUND_PRIORITY if is_background else 0
        call = self._worker.submit(lambda network: self._run_on_worker(network, jobs), priority)
        return await asyncio.wrap_future(call)

    def status(self) -> StageStatus:
        return self._status

    def wait(self) -> None:
        """Wait until the network is loaded; raises what loading it raised."""
        self._worker.wait()

    def close(self) -> None:
        """End the worker thread."""
        self._worker.close()

    def _run_on_worker(self, network: Network, jobs: Sequence[Job]) -> list[Result]:
        started = time.perf_counter()
        results = self._process(network, jobs, started)
        self.meter.record_duration(time.perf_counter() - started, len(jobs))
        return results

    @abstractmethod
    def _process(self, network: Network, jobs: Sequence[Job], started: float) -> list[Result]:
        """Process `jobs` on the worker thread; `started` is the time (`perf_counter`) at which they began."""
