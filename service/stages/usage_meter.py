"""A stage's usage meter: when its thread was busy, and what it spent on which request.

The stage's thread writes it, the reporter's thread reads it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from safelight.pipeline.params import DenoiseUsage, StageCost, UsageAmounts
from safelight.pipeline.scheduling.autoscaling import OfferedLoad
from safelight.service.messages import RequestContext, StageStatus
from safelight.service.usage.events import StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import TickHistograms

SMOOTHING = 0.1  # weight of the latest measurement in the mean seconds of a job


class UsageMeter:
    """Measures busy time, collects usage events, and estimates the work left in the stage.

    Args:
        stage: The stage's name.
        model: Id of the only model that it serves, for its reports; empty: it may serve several.
    """

    def __init__(self, stage: str, model: str = ""):
        self.stage = stage
        self.model = model
        self._lock = threading.Lock()
        self._events: list[UsageEvent] = []
        self._busy = self._starting = self._lost = 0.0
        self._open = self._work_left = 0.0
        self._busy_since: float | None = None
        self._thread = 0
        self._jobs = 0
        self._seconds_per_job = self._reported = 0.0
        self._offered = OfferedLoad()
        self._ticks = TickHistograms()

    def begin(self) -> None:
        """Start counting busy time of the calling thread."""
        with self._lock:
            self._busy_since, self._thread = time.perf_counter(), threading.get_native_id()

    def end(self) -> None:
        """Stop counting busy time: the thread is idle."""
        with self._lock:
            if self._busy_since is not None:
                self._busy += time.perf_counter() - self._busy_since
            self._busy_since = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The calling thread is busy within the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Inside `busy`: the thread waits for work within the block."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    def add_busy(self, seconds: float) -> None:
        """Count busy seconds of another thread of the stage."""
        with self._lock:
            self._busy += seconds

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Inside `busy`: the network is loaded and measured within the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._starting += time.perf_counter() - started

    @contextmanager
    def count_jobs(self, number: int) -> Iterator[None]:
        """`number` more jobs are in the stage, waiting or being processed, within the block."""
        with self._lock:
            self._jobs += number
        try:
            yield
        finally:
            with self._lock:
                self._jobs -= number

    def record_duration(self, seconds: float, jobs: int) -> None:
        """Update the mean seconds of a job, from which the work left is estimated."""
        with self._lock:
            per_job = seconds / max(jobs, 1)
            weight = SMOOTHING if self._seconds_per_job else 1.0
            self._seconds_per_job += weight * (per_job - self._seconds_per_job)

    def record_tick(self, seconds: float, rows: int, tokens: int, expected_seconds: float) -> None:
        """Count a tick in the histograms; `expected_seconds` is its forecast."""
        with self._lock:
            self._ticks.observe(seconds, rows, tokens, expected_seconds)

    def set_open_work(self, open_seconds: float, work_left: float) -> None:
        """Set the seconds spent on the images in the stage, and the seconds that they still need."""
        with self._lock:
            self._open, self._work_left = open_seconds, work_left

    def count_open_work_as_lost(self) -> None:
        """Count the seconds spent on the unfinished images as lost, because all of them failed."""
        with self._lock:
            self._lost += self._open
            self._open = self._work_left = 0.0

    def record_usage(
        self, context: RequestContext, cost: StageCost, usage: DenoiseUsage | None = None
    ) -> None:
        """Add a usage event for one image; a denoiser passes its `usage` too."""
        counts = (usage.nfe, usage.rows, usage.tokens) if usage else ()
        amounts = UsageAmounts(cost.device_seconds, cost.queue_seconds, cost.flops, *counts)
        with self._lock:
            self._reported += cost.device_seconds
            self._events.append(UsageEvent(context.record_id, amounts))

    @property
    def work_left(self) -> float:
        """Device seconds that the images in the stage still need."""
        with self._lock:
            return self._work_left + self._jobs * self._seconds_per_job

    def autoscaling_stats(self) -> dict[str, float]:
        """The statistics that `safelight.service.ray_serve.autoscaling` reads."""
        work_left = self.work_left
        with self._lock:
            offered = self._offered.observe(self._reported + self._open + work_left, time.perf_counter())
            return {"work_left": work_left, "offered": offered, "seconds_a_job": self._seconds_per_job}

    @property
    def totals(self) -> StageTotals:
        """The totals up to this moment, the current busy period included."""
        now = time.perf_counter()
        work_left = self.work_left
        with self._lock:
            current = now - self._busy_since if self._busy_since is not None else 0.0
            return StageTotals(
                busy=self._busy + current,
                starting=self._starting,
                lost=self._lost,
                open=self._open,
                work_left=work_left,
                ticks=self._ticks.data,
            )

    def collect_report(self, source: str, number: int, status: StageStatus) -> StageReport:
        """Take out the usage events since the previous report, and add the totals."""
        totals = self.totals
        with self._lock:
            events, self._events = tuple(self._events), []
            return StageReport(
                source=source,
                number=number,
                stage=self.stage,
                events=events,
                totals=totals,
                status=status,
                process=os.getpid(),
                thread=self._thread,
                model=self.model,
            )
