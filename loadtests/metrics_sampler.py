"""Samples the service's Prometheus metrics once a second while a load runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import httpx2
from prometheus_client.parser import text_string_to_metric_families

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """One scrape: seconds since the start, and values by metric name and stage ("" without a stage)."""

    at: float
    values: dict[tuple[str, str], float]

    def value(self, name: str, stage: str = "") -> float:
        return self.values.get((name, stage), 0.0)


@dataclass(slots=True)
class MetricsSeries:
    """The scrapes of one phase in order."""

    samples: list[MetricsSample] = field(default_factory=list)

    def rates(self, name: str, stage: str = "") -> list[tuple[float, float]]:
        """The growth per second of a counter between scrapes, as (seconds, rate)."""
        return [
            (after.at, (after.value(name, stage) - before.value(name, stage)) / (after.at - before.at))
            for before, after in pairwise(self.samples)
            if after.at > before.at
        ]

    def ratios(self, name: str, over: str, stage: str = "") -> list[tuple[float, float]]:
        """The growth of counter `name` over that of counter `over` between scrapes, as (seconds, ratio).

        Intervals in which `over` did not grow are left out.
        """
        ratios = []
        for before, after in pairwise(self.samples):
            growth = after.value(over, stage) - before.value(over, stage)
            if growth > 0.0:
                ratios.append((after.at, (after.value(name, stage) - before.value(name, stage)) / growth))
        return ratios


@asynccontextmanager
async def sample_metrics(url: str) -> AsyncIterator[MetricsSeries]:
    """Scrape while the block runs. Failed scrapes are skipped: the requests' results show what is wrong."""
    series = MetricsSeries()
    task = asyncio.ensure_future(_scrape(url, series))
    try:
        yield series
    finally:
        task.cancel()


async def _scrape(url: str, series: MetricsSeries) -> None:
    started = time.perf_counter()
    async with httpx2.AsyncClient(base_url=url, timeout=5.0) as client:
        while True:
            try:
                text = (await client.get("/metrics")).raise_for_status().text
            except httpx2.HTTPError:
                await asyncio.sleep(INTERVAL_SECONDS)
                continue
            series.samples.append(MetricsSample(time.perf_counter() - started, _values(text)))
            await asyncio.sleep(INTERVAL_SECONDS)


def _values(text: str) -> dict[tuple[str, str], float]:
    """The values of metrics that have no labels but the stage and the model; those of models are added up."""
    values: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if set(sample.labels) <= {"stage", "model"}:
                key = sample.name, sample.labels.get("stage", "")
                values[key] = values.get(key, 0.0) + sample.value
    return values
