"""An object that only its own thread may use."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from safelight.service.stages.usage_meter import UsageMeter

T = TypeVar("T")
R = TypeVar("R")


class Worker(Generic[T]):
    """Creates its object on a thread of its own and calls it only there.

    The thread count of torch's kernels is a property of the calling thread, so one thread must set it and do
    the work.
    """

    def __init__(self, make: Callable[[], T], meter: UsageMeter):
        self._meter = meter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=meter.stage)
        self._object: Future[T] = self._thread.submit(lambda: self._start(make))

    def wait(self) -> T:
        """Wait until the object is made, and return it; raises what `make` raised."""
        return self._object.result()

    async def call(self, function: Callable[[T], R]) -> R:
        """Run `function(object)` on the worker's thread, without blocking the event loop."""
        return await asyncio.wrap_future(self._thread.submit(lambda: self._work(function)))

    def close(self) -> None:
        """End the thread after the call that it is running; waiting calls are cancelled."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self, make: Callable[[], T]) -> T:
        with self._meter.busy(), self._meter.starting():
            return make()

    def _work(self, function: Callable[[T], R]) -> R:
        with self._meter.busy():
            return function(self._object.result())
