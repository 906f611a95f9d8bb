"""The watchdog of the denoiser's ticks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from safelight.service.stages import tick_watchdog
from safelight.service.stages.tick_watchdog import MAX_RATIO, TickWatchdog
from tests.clock import ManualClock


class Hangs:
    """The limits of the ticks that were taken to hang."""

    def __init__(self) -> None:
        self.limits: list[float] = []
        self.is_known = threading.Event()

    def __call__(self, limit: float) -> None:
        self.limits.append(limit)
        self.is_known.set()


@contextmanager
def watching(hangs: Hangs, least_seconds: float) -> Iterator[TickWatchdog]:
    watchdog = TickWatchdog(least_seconds, hangs)
    yield watchdog
    watchdog.close()


@pytest.mark.parametrize(("forecast", "limit"), [(0.0, 0.02), (0.01, MAX_RATIO * 0.01)])
def test_a_tick_without_an_end_is_told_once(forecast: float, limit: float) -> None:
    hangs = Hangs()
    with watching(hangs, least_seconds=0.02) as watchdog:
        watchdog.begin(forecast)
        assert hangs.is_known.wait(60.0)
    assert hangs.limits == [limit]


def test_a_slow_tick_within_its_forecast_and_the_time_between_ticks_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, hangs, looks = ManualClock(now=100.0), Hangs(), threading.Semaphore(0)
    clock.install(monkeypatch, tick_watchdog)
    with watching(hangs, least_seconds=0.02) as watchdog:
        closed = watchdog._is_closed

        class CountedWait:
            def wait(self, seconds: float) -> bool:
                looks.release()
                return closed.wait(seconds)

            def set(self) -> None:
                closed.set()

        monkeypatch.setattr(watchdog, "_is_closed", CountedWait())
        watchdog.begin(forecast=3.0)
        clock.now += MAX_RATIO * 3.0  # exactly what it may take
        for _ in range(3):
            looks.acquire()
        watchdog.end()
        clock.now += 1e6
        for _ in range(3):
            looks.acquire()
    assert hangs.limits == []
