"""The load profile of a batch beside requests whose callers wait."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from loadtests import batches
from loadtests.metrics_sampler import MetricsSample
from loadtests.results import RequestResult
from loadtests.traces import ScheduledRequest
from safelight.service.http.gateway import build_gateway
from tests.fakes import MODEL, FakeBackend
from tests.service.http.batches.service import hurry
from tests.service.http.jobs.service import make_settings
from tests.service.http_server import served


async def test_a_batch_is_drawn_beside_the_same_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is really drawn; the requests' latencies are made up."""
    schedules: list[Sequence[ScheduledRequest]] = []

    async def replay(
        url: str,
        schedule: Sequence[ScheduledRequest],
        timeout: float = 0.0,
        progress: Callable[[int], None] = print,
        key: str | None = None,
    ) -> list[RequestResult]:
        schedules.append(schedule)
        latency = (0.01, 1.0, 1.2)[len(schedules) - 1]
        return [
            RequestResult(request.at, request.at, request.at + latency, 200, None, 1, 0.0, 0)
            for request in schedule
        ]

    hurry(monkeypatch)
    monkeypatch.setattr(batches, "replay", replay)
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.01)
    backend = FakeBackend()
    with served(build_gateway(backend, MODEL, make_settings(tmp_path))) as url:
        effect = await batches.measure(url, num_lines=5, seconds=60.0, load=0.5)
    assert schedules[1] == schedules[2], "the same requests at the same times"
    assert effect.capacity == pytest.approx(100.0 * batches.NUM_CALIBRATING)
    assert (effect.lines, effect.lines_failed) == (5, 0)
    assert effect.ratio == pytest.approx(1.2)
    assert sum(params.num_steps == batches.STEPS for params, _ in backend.drawn) == 5
    assert effect.requests < len(schedules[2]), "those after the batch do not count"
    assert effect.failures == 0


def test_the_share_of_busy_seconds() -> None:
    def sample(at: float, busy: float) -> MetricsSample:
        return MetricsSample(at, {(batches.BUSY, "denoise"): busy, (batches.REPLICAS, "denoise"): 2.0})

    assert batches.busy_share([sample(1.0, 3.0), sample(2.0, 4.0), sample(6.0, 12.0)]) == 0.9
    assert batches.busy_share([sample(1.0, 3.0)]) == 0.0
