"""The service's own metrics, looked at once a second while a load runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: seconds from the start, and every sample by its name and stage (empty where it has none)."""

    at: float
    values: dict[tuple[str, str], float]

    def of(self, name: str, stage: str = "") -> float:
        return self.values.get((name, stage), 0.0)


@dataclass(slots=True)
class Watched:
    """What was seen, in order."""

    looks: list[Seen] = field(default_factory=list)

    def rates(self, name: str, stage: str = "") -> list[tuple[float, float]]:
        """(seconds, rise a second) between looks, of a counter."""
        return [
            (after.at, (after.of(name, stage) - before.of(name, stage)) / (after.at - before.at))
            for before, after in zip(self.looks, self.looks[1:], strict=False)
            if after.at > before.at
        ]

    def ratios(self, name: str, over: str, stage: str = "") -> list[tuple[float, float]]:
        """(seconds, rise of one counter for each rise of another) between looks; left out where the other stood still."""
        found = []
        for before, after in zip(self.looks, self.looks[1:], strict=False):
            rise = after.of(over, stage) - before.of(over, stage)
            if rise > 0.0:
                found.append((after.at, (after.of(name, stage) - before.of(name, stage)) / rise))
        return found


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[Watched]:
    """Looks while the block runs. A look that fails is left out: the load, not the watch, says what is wrong."""
    watched = Watched()
    task = asyncio.ensure_future(_watch(url, watched))
    try:
        yield watched
    finally:
        task.cancel()


async def _watch(url: str, watched: Watched) -> None:
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=5.0) as client:
        while True:
            try:
                text = (await client.get("/metrics")).raise_for_status().text
            except httpx.HTTPError:
                await asyncio.sleep(EVERY_SECONDS)
                continue
            watched.looks.append(Seen(time.perf_counter() - started, _values(text)))
            await asyncio.sleep(EVERY_SECONDS)


def _values(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if set(sample.labels) <= {"stage"}
    }
