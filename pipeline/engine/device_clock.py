"""When a device has done what was queued on it, and how long that took.

A processor has finished when a call returns. A GPU works through a queue behind the host: an event in the
queue is reached when everything before it is done, and the host waits for nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in the device's queue."""

    def wait(self) -> None:
        """Return when the device has reached this point."""

    def seconds_since(self, earlier: Mark) -> float:
        """Device time between two points, both of the same clock; waits for both."""


class DeviceClock(Protocol):
    """Sets marks in a device's queue.

    Attributes:
        runs_ahead: whether the host may prepare the next tick while the device still computes the last one.
    """

    @property
    def runs_ahead(self) -> bool: ...

    def mark(self) -> Mark:
        """The present end of the queue. Does not wait."""


@dataclass(frozen=True, slots=True)
class HostMark:
    """A moment by `time.perf_counter`."""

    at: float

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, HostMark)
        return self.at - earlier.at


@dataclass(frozen=True, slots=True)
class HostClock:
    """The clock of a processor: a mark is reached at once.

    With `runs_ahead` the engine goes through the motions of a GPU on a processor, for tests.
    """

    runs_ahead: bool = False

    def mark(self) -> HostMark:
        return HostMark(time.perf_counter())


@dataclass(frozen=True, slots=True)
class CudaMark:
    """A CUDA event that was recorded on the current stream."""

    event: torch.cuda.Event

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, CudaMark)
        earlier.event.synchronize()
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


@dataclass(frozen=True, slots=True)
class CudaClock:
    """The clock of a GPU, by events on its current stream."""

    device: torch.device
    runs_ahead: bool = True

    def mark(self) -> CudaMark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return CudaMark(event)


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
