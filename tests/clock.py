"""A clock that a test sets, for modules that read `time.perf_counter`."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class ManualClock:
    """Stands still until the test moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        """The Unix time."""
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-9  # as a real one does, so that rounding cannot end it too early

    def install(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Let the `modules`, which say `import time`, read this clock."""
        clock: Any = SimpleNamespace(perf_counter=self.perf_counter, sleep=self.sleep, time=self.time)
        for module in modules:
            monkeypatch.setattr(module, "time", clock)
