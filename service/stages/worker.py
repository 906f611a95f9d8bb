"""One object on one thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from safelight.service.stages.usage_meter import UsageMeter

T = TypeVar("T")
R = TypeVar("R")


class Worker(Generic[T]):
    """Makes its object on its own thread and calls it only there.

    The thread count of torch's kernels is a property of the calling thread, so whoever sets it must also do the work.
    """

    def __init__(self, make: Callable[[], T], books: UsageMeter):
        self._books = books
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=books.stage)
        self._made: Future[T] = self._thread.submit(lambda: self._start(make))

    def wait(self) -> T:
        """The object, when it is made; raises what making it raised."""
        return self._made.result()

    async def call(self, function: Callable[[T], R]) -> R:
        """`function(the object)`, without blocking the event loop."""
        return await asyncio.wrap_future(self._thread.submit(lambda: self._work(function)))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self, make: Callable[[], T]) -> T:
        with self._books.working(), self._books.starting():
            return make()

    def _work(self, function: Callable[[T], R]) -> R:
        with self._books.working():
            return function(self._made.result())
