"""The signals that stop the command."""

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, Self

from safelight.service.supervision.processes import kill_all

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILL_SECONDS = 2.0
SHOW_CURSOR = "\x1b[?25h"


class StopRequest:
    """Receives SIGINT, SIGTERM and SIGHUP: the first asks the command to stop, another ends it at once.

    The first raises `KeyboardInterrupt`, or is only noted while `is_deferred`. SIGHUP stays ignored where it
    is, as under nohup.

    Attributes:
        is_deferred: Whether the code that runs looks at `is_made` itself.
        made_at: When the first signal came, by the monotonic clock; None before.
    """

    def __init__(self) -> None:
        self.is_deferred = False
        self.made_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def is_made(self) -> bool:
        return self.made_at is not None

    def __enter__(self) -> Self:
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if number != signal.SIGHUP or previous != signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.is_made:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)  # the line of progress hides it
                sys.stderr.flush()
            kill_all(seconds=KILL_SECONDS)
            os._exit(128 + number)
        self.made_at = time.monotonic()
        if not self.is_deferred:
            raise KeyboardInterrupt
