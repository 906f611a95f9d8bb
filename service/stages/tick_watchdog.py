"""Notices a tick that does not end, from a thread of its own."""

import threading
import time
from collections.abc import Callable

MAX_RATIO = 20.0  # of a tick to its forecast, beyond which it hangs if it also exceeds the least limit
LOOKS = 4  # at the clock within the least limit


class TickWatchdog(threading.Thread):
    """Calls a function once if the denoiser does not come to the end of a tick.

    Args:
        least_seconds: That a tick may take in any case.
        on_hang: Called with the seconds that were allowed, on the watchdog's thread, which then ends.
    """

    def __init__(self, least_seconds: float, on_hang: Callable[[float], None]):
        super().__init__(name="tick watchdog", daemon=True)
        self._least_seconds = least_seconds
        self._on_hang = on_hang
        self._tick: tuple[float, float] | None = None  # when it began, and the seconds that it may take
        self._is_closed = threading.Event()
        self.start()

    def begin(self, forecast: float) -> None:
        """A tick begins that should take at most `forecast` seconds."""
        self._tick = time.perf_counter(), max(self._least_seconds, MAX_RATIO * forecast)

    def end(self) -> None:
        """The tick has ended."""
        self._tick = None

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()
        self.join()

    def run(self) -> None:
        while not self._is_closed.wait(self._least_seconds / LOOKS):
            tick = self._tick
            if tick is not None and time.perf_counter() > sum(tick):
                self._on_hang(tick[1])
                return
