"""A stage's own books: when its thread was busy, and whom it worked for. Written by that thread, read by the reporter's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from safelight.pipeline.params import DenoiseUsage, StageCost
from safelight.pipeline.scheduling.autoscaling import OfferedLoad
from safelight.service.messages import RequestContext, StageStatus
from safelight.service.usage.events import StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import TickHistograms

SMOOTHING = 0.1  # of the mean seconds that a job takes


class UsageMeter:
    """Counts from the moment of `begin`; `open` and `work_left` are told by whoever knows them."""

    def __init__(self, stage: str):
        self.stage = stage
        self._lock = threading.Lock()
        self._charges: list[UsageEvent] = []
        self._busy = self._starting = self._lost = 0.0
        self._open = self._work_left = 0.0
        self._since: float | None = None
        self._thread = 0
        self._jobs_here = 0
        self._seconds_a_job = self._charged = 0.0
        self._offered = OfferedLoad()
        self._ticks = TickHistograms()

    def begin(self) -> None:
        """The calling thread is at work from now on."""
        with self._lock:
            self._since, self._thread = time.perf_counter(), threading.get_native_id()

    def end(self) -> None:
        with self._lock:
            if self._since is not None:
                self._busy += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def working(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def resting(self) -> Iterator[None]:
        self.end()
        try:
            yield
        finally:
            self.begin()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Within `working`: the network is being made."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._starting += time.perf_counter() - started

    @contextmanager
    def jobs(self, number: int) -> Iterator[None]:
        """So many jobs are here, waiting or being done, until the block ends."""
        with self._lock:
            self._jobs_here += number
        try:
            yield
        finally:
            with self._lock:
                self._jobs_here -= number

    def took(self, seconds: float, jobs: int) -> None:
        """News of what a job takes, from which the work that is left is told."""
        with self._lock:
            each = seconds / max(jobs, 1)
            self._seconds_a_job += (SMOOTHING if self._seconds_a_job else 1.0) * (each - self._seconds_a_job)

    def tick(self, seconds: float, rows: int, tokens: int, expected_seconds: float) -> None:
        with self._lock:
            self._ticks.observe(seconds, rows, tokens, expected_seconds)

    def tell(self, open: float, work_left: float) -> None:
        """Seconds spent on those who are here, and seconds that they will still take."""
        with self._lock:
            self._open, self._work_left = open, work_left

    def lose(self) -> None:
        """Whoever is here is gone, and what was spent on them with them."""
        with self._lock:
            self._lost += self._open
            self._open = self._work_left = 0.0

    def charge(self, context: RequestContext, cost: StageCost, usage: DenoiseUsage | None = None) -> None:
        counts = (usage.nfe, usage.rows, usage.tokens) if usage else ()
        with self._lock:
            self._charged += cost.device_seconds
            self._charges.append(
                UsageEvent(context.record_id, cost.device_seconds, cost.flops, cost.queue_seconds, *counts)
            )

    @property
    def work_left(self) -> float:
        """Device-seconds that those who are here will still take."""
        with self._lock:
            return self._work_left + self._jobs_here * self._seconds_a_job

    def demand(self) -> dict[str, float]:
        """What the scaling of the stage goes by (`safelight.service.ray_serve.autoscaling`)."""
        work_left = self.work_left
        with self._lock:
            offered = self._offered.observe(self._charged + self._open + work_left, time.perf_counter())
            return {"work_left": work_left, "offered": offered, "seconds_a_job": self._seconds_a_job}

    @property
    def totals(self) -> StageTotals:
        now = time.perf_counter()
        work_left = self.work_left
        with self._lock:
            busy = self._busy + (now - self._since if self._since is not None else 0.0)
            return StageTotals(busy, self._starting, self._lost, self._open, work_left, self._ticks.counts)

    def state(self, source: str, number: int, status: StageStatus) -> StageReport:
        """Everything since the last statement; what is stated is taken out of the books."""
        totals = self.totals
        with self._lock:
            charges, self._charges = tuple(self._charges), []
            return StageReport(source, number, self.stage, charges, totals, status, os.getpid(), self._thread)
