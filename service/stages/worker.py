"""An object that only its own thread may use."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, PriorityQueue
from typing import Any, Generic, TypeVar

from safelight.service.stages.usage_meter import UsageMeter

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, order=True)
class _Call:
    """A call that waits for the thread; calls of one priority are in the order of `number`."""

    priority: int  # the smallest is next
    number: int
    function: Callable[[Any], Any] = field(compare=False)
    future: Future[Any] = field(default_factory=Future, compare=False)


class Worker(Generic[T]):
    """Creates its object on a thread of its own and calls it only there.

    The thread count of torch's kernels is a property of the calling thread, so one thread must set it and do
    the work.
    """

    def __init__(self, make: Callable[[], T], meter: UsageMeter):
        self._meter = meter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=meter.stage)
        self._object: Future[T] = self._thread.submit(lambda: self._start(make))
        self._calls: PriorityQueue[_Call] = PriorityQueue()
        self._numbers = itertools.count()

    def wait(self) -> T:
        """Wait until the object is made, and return it; raises what `make` raised."""
        return self._object.result()

    async def call(self, function: Callable[[T], R]) -> R:
        """Run `function(object)` on the worker's thread, without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(function))

    def submit(self, function: Callable[[T], R], priority: int = 0) -> "Future[R]":
        """Queue `function(object)`. Calls of a smaller `priority` go first, and others as they came.

        Raises:
            RuntimeError: The worker was closed.
        """
        call = _Call(priority, next(self._numbers), function)
        self._calls.put(call)
        # As many times as there are calls, the thread runs the one that is then the first.
        self._thread.submit(self._run_next)
        return call.future

    def close(self) -> None:
        """End the thread after the call that it is running; waiting calls are cancelled."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        while (call := self._next_call()) is not None:
            call.future.cancel()

    def _start(self, make: Callable[[], T]) -> T:
        with self._meter.busy(), self._meter.starting():
            return make()

    def _run_next(self) -> None:
        call = self._next_call()
        if call is None or not call.future.set_running_or_notify_cancel():
            return
        try:
            with self._meter.busy():
                result = call.function(self._object.result())
        except BaseException as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    def _next_call(self) -> _Call | None:
        try:
            return self._calls.get_nowait()
        except Empty:
            return None
