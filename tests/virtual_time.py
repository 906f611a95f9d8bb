"""An event loop whose clock jumps to the next timer, so that time limits are tested without waiting."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(BaseException):
    """The loop has nothing to run and no timer: a real one would wait for ever."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing; `time()` starts at 0. For code that uses no threads."""

    def __init__(self) -> None:
        self._seconds = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._seconds

    def jump(self, seconds: float) -> None:
        self._seconds += seconds


class _JumpingSelector(selectors.SelectSelector):
    """Moves the loop's clock where another selector would wait."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise Stuck
            self._loop.jump(timeout)
        return events


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a loop of virtual time; raises `Stuck` where it would hang."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
