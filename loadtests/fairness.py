"""`python -m loadtests.fairness --url URL`: what one greedy API key does to nine polite ones.

Ten keys of equal weight are made through the admin API, and revoked at the end; the admin key is read from
SAFELIGHT_ADMIN_KEY. Polite keys send at random, each at a part of its share of the capacity; first alone,
then beside a key that sends ten times its share. The exit status is 1 if the polite keys' p95 rises by more
than `--max-ratio`, or a polite image fails.
"""

import argparse
import asyncio
import os
import random
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from loadtests.replay import replay
from loadtests.results import RequestResult, percentile
from loadtests.service import keep_loopback_direct
from loadtests.traces import ScheduledRequest, any_body, poisson

NUM_POLITE = 9
GREEDY_TIMES_SHARE = 10.0
NUM_CALIBRATING = 24  # images at once, from which the capacity is estimated
MISSED = 1


@dataclass(frozen=True, slots=True)
class Fairness:
    """What was measured; latencies in seconds."""

    capacity: float  # images a second
    alone_p95: float  # of polite keys without the greedy one
    beside_p95: float  # and with it
    polite_failures: int
    polite_images: int
    greedy_images: int  # drawn
    greedy_refused: int

    @property
    def ratio(self) -> float:
        return self.beside_p95 / self.alone_p95

    def as_text(self) -> str:
        return "\n".join(
            (
                f"capacity: {self.capacity:.2f} images a second",
                f"polite p95 alone: {self.alone_p95:.2f} s",
                f"polite p95 beside the greedy key: {self.beside_p95:.2f} s ({self.ratio:.2f} times)",
                f"polite images: {self.polite_images}, of which failed: {self.polite_failures}",
                f"greedy images: {self.greedy_images}, refused: {self.greedy_refused}",
            )
        )


def main() -> int:
    """Measure the service that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="a running service that asks for API keys")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two phases")
    parser.add_argument(
        "--polite-load", type=float, default=0.8, help="of a polite key, as part of its share"
    )
    parser.add_argument("--max-ratio", type=float, default=1.5)
    args = parser.parse_args()
    keep_loopback_direct()
    with api_keys(args.url, os.environ.get("SAFELIGHT_ADMIN_KEY", ""), NUM_POLITE + 1) as keys:
        result = asyncio.run(measure(args.url, keys, args.seconds, args.polite_load))
    print(result.as_text())
    return MISSED if result.ratio > args.max_ratio or result.polite_failures else 0


@contextmanager
def api_keys(url: str, admin_key: str, count: int) -> Iterator[list[str]]:
    """Secrets of new keys, which are revoked at the end. Raises `httpx2.HTTPError`."""
    run = secrets.token_hex(4)
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {admin_key}"}) as client:
        secrets_by_name: dict[str, str] = {}
        try:
            for number in range(count):
                name = f"fairness-{run}-{number}"
                answer = client.post("/v1/admin/keys", json={"name": name}).raise_for_status()
                secrets_by_name[name] = answer.json()["secret"]
            yield list(secrets_by_name.values())
        finally:
            for name in secrets_by_name:
                client.delete(f"/v1/admin/keys/{name}")


async def measure(url: str, keys: Sequence[str], seconds: float, polite_load: float) -> Fairness:
    """Estimate the capacity, then run both phases.

    Args:
        url: base URL of the service.
        keys: secrets, the greedy key's last.
        seconds: length of a phase.
        polite_load: of a polite key, as part of its share of the capacity.
    """
    sizes = await _sizes(url, keys[0])
    rng = random.Random(1)
    burst = [ScheduledRequest(0.0, any_body(rng, sizes)) for _ in range(NUM_CALIBRATING)]
    results = await replay(url, burst, key=keys[0])
    capacity = len(results) / max(result.done for result in results)
    share = capacity / len(keys)
    *polite, greedy = keys

    def schedules(seed: int) -> list[list[ScheduledRequest]]:
        return [poisson(polite_load * share, seconds, sizes, seed + number) for number in range(len(polite))]

    alone = await _replay_all(url, polite, schedules(100))
    beside = [*schedules(200), poisson(GREEDY_TIMES_SHARE * share, seconds, sizes, seed=9)]
    *beside_polite, greedy_results = await _replay_all(url, [*polite, greedy], beside)
    before, after = _flat(alone), _flat(beside_polite)
    return Fairness(
        capacity=capacity,
        alone_p95=percentile([result.latency for result in before if result.is_good], 95),
        beside_p95=percentile([result.latency for result in after if result.is_good], 95),
        polite_failures=sum(not result.is_good for result in before + after),
        polite_images=len(before) + len(after),
        greedy_images=sum(result.status == 200 for result in greedy_results),
        greedy_refused=sum(result.status == 429 for result in greedy_results),
    )


async def _replay_all(
    url: str, keys: Sequence[str], schedules: Sequence[Sequence[ScheduledRequest]]
) -> list[list[RequestResult]]:
    """The results of each key's schedule, all replayed at the same time."""
    replays = [replay(url, schedule, key=key) for key, schedule in zip(keys, schedules, strict=True)]
    return list(await asyncio.gather(*replays))


async def _sizes(url: str, key: str) -> list[str]:
    """The image sizes of the default model."""
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
        answer = (await client.get("/v1/models")).raise_for_status().json()
    return list(answer["data"][0]["sizes"])


def _flat(results: Sequence[Sequence[RequestResult]]) -> list[RequestResult]:
    return [result for part in results for result in part]


if __name__ == "__main__":
    sys.exit(main())
