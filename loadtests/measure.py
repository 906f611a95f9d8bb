"""Runs the load phases against a service and collects what they measure.

The phases, one after another:

1. the mix, one request at a time;
2. a burst, from which the capacity is estimated;
3. more requests than the service can handle;
4. a steady share of the throughput in phase 3.

A recorded trace replaces all of them.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import httpx2
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtests.accounting import AccountingSnapshot, read_settled_snapshot, read_snapshot
from loadtests.core_seconds import CoreClock, CoreSeconds
from loadtests.metrics_sampler import MetricsSeries, sample_metrics
from loadtests.replay import replay
from loadtests.results import Phase
from loadtests.service import Service
from loadtests.traces import ScheduledRequest, any_body, poisson

OVERLOAD = 1.5  # the saturated load, as a multiple of the estimated capacity
SEED = 20_261


@dataclass(frozen=True)
class Load:
    """How much is sent in the phases."""

    seconds: float = 150.0  # roughly the duration of phases 3 and 4 together
    steady_share: float = 0.6  # the steady load as a share of the saturated throughput
    num_alone: int = 16
    burst: int = 24  # requests sent at once to estimate the capacity


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load test measured."""

    model: str
    sizes: Sequence[str]
    alone: Phase | None  # None if a recorded trace was replayed
    saturated: Phase | None  # likewise
    steady: Phase
    replayed: Sequence[tuple[Phase, MetricsSeries]]  # open-loop phases in order, with the service's metrics
    before: AccountingSnapshot | None
    after: AccountingSnapshot | None
    core_seconds: CoreSeconds | None  # of the saturated phase, if the service's processes are known

    @property
    def phases(self) -> list[Phase]:
        """All phases in order."""
        replayed = [phase for phase, _ in self.replayed]
        return replayed if self.alone is None else [self.alone, *replayed]


def measure(service: Service, recorded: Sequence[ScheduledRequest] | None, load: Load) -> Measurement:
    """Run all phases against the service.

    Args:
        service: the service.
        recorded: replayed in place of the phases, if not None.
        load: how much is sent in the phases.

    Raises:
        httpx2.HTTPError: The service does not answer.
    """
    url, key = service.url, os.environ.get("SAFELIGHT_ADMIN_KEY")
    before = read_snapshot(url, key)
    model = httpx2.get(f"{url}/v1/models", timeout=10.0).raise_for_status().json()["data"][0]
    sizes = model["sizes"]
    replayed: list[tuple[Phase, MetricsSeries]] = []

    def run(name: str, schedule: Sequence[ScheduledRequest], rate: float) -> Phase:
        phase, series = asyncio.run(_replay_phase(url, name, schedule, 3600.0 * rate))
        replayed.append((phase, series))
        return phase

    alone = saturated = core_seconds = None
    if recorded is not None:
        steady = run("recorded", recorded, len(recorded) / max(recorded[-1].at, 1e-9))
    else:
        alone = _one_by_one(url, at_once(load.num_alone, sizes))
        burst = run("burst", at_once(load.burst, sizes), 0.0)
        overload = OVERLOAD * burst.images_per_hour / 3600.0
        clock = None if service.pid is None else CoreClock(service.pid)
        saturated = run("saturated", arrivals(overload, load.seconds / 3, sizes, SEED + 1), overload)
        core_seconds = None if clock is None else clock.read()
        rate = load.steady_share * saturated.images_per_hour / 3600.0
        steady = run(f"at {load.steady_share:.0%}", arrivals(rate, load.seconds / 2, sizes, SEED + 2), rate)
    after = read_settled_snapshot(url, key)
    return Measurement(model["id"], sizes, alone, saturated, steady, replayed, before, after, core_seconds)


def at_once(num_requests: int, sizes: Sequence[str]) -> list[ScheduledRequest]:
    """The first requests of the mix, all due now."""
    rng = random.Random(SEED)
    return [ScheduledRequest(0.0, any_body(rng, sizes)) for _ in range(num_requests)]


def arrivals(rate: float, seconds: float, sizes: Sequence[str], seed: int) -> list[ScheduledRequest]:
    """A Poisson process of mixed requests; at least one request, so that every phase has a result."""
    rng = random.Random(seed)
    return poisson(rate, seconds, sizes, seed) or [ScheduledRequest(0.0, any_body(rng, sizes))]


async def _replay_phase(
    url: str, name: str, schedule: Sequence[ScheduledRequest], offered_per_hour: float
) -> tuple[Phase, MetricsSeries]:
    with _progress_bar() as bar:
        task = bar.add_task(name, total=len(schedule))
        async with sample_metrics(url) as series:
            results = await replay(url, schedule, progress=lambda done: bar.update(task, completed=done))
    return Phase(name, offered_per_hour, tuple(results)), series


def _one_by_one(url: str, requests: Sequence[ScheduledRequest]) -> Phase:
    """Send each request when the one before is answered."""
    results, started = [], 0.0
    with _progress_bar() as bar:
        for request in bar.track(requests, description="one by one"):
            (result,) = asyncio.run(replay(url, [request]))
            results.append(replace(result, due=started, sent=started, done=started + result.latency))
            started += result.latency
    return Phase("one by one", 3600.0 * len(results) / started, tuple(results))


def _progress_bar() -> AbstractContextManager[Progress]:
    return Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
