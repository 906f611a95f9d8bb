"""`python -m loadtests.batches --url URL`: what a batch does to requests whose callers wait.

The same requests are sent twice at the same random times: first alone, then while a batch is drawn. The batch
draws 8 steps an image at the model's native size. Latencies count while it is drawn. The exit status is 1 if
the p95 rises by more than `--max-ratio`, if the denoiser is less busy than `--min-busy` while the batch is
drawn, or if an image fails.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from loadtests.metrics_sampler import MetricsSample, sample_metrics
from loadtests.replay import replay
from loadtests.results import RequestResult, percentile
from loadtests.service import keep_loopback_direct
from loadtests.traces import ScheduledRequest, any_body, poisson

ROUTE = "/v1/images/generations"
NUM_CALIBRATING = 16  # images at once, from which the capacity is estimated
STEPS = 8  # of an image of the batch
POLL_SECONDS = 0.5
BUSY, REPLICAS = "safelight_stage_busy_seconds_total", "safelight_stage_replicas"
MISSED = 1


@dataclass(frozen=True, slots=True)
class BatchEffect:
    """What was measured; latencies in seconds."""

    capacity: float  # images a second
    alone_p95: float  # of requests without the batch
    beside_p95: float  # and with it
    requests: int  # while the batch was drawn
    failures: int
    lines: int
    lines_failed: int
    batch_seconds: float
    busy: float  # the share of the batch's seconds in which the denoiser was busy

    @property
    def ratio(self) -> float:
        return self.beside_p95 / self.alone_p95

    def as_text(self) -> str:
        return "\n".join(
            (
                f"capacity: {self.capacity:.2f} images a second",
                f"p95 alone: {self.alone_p95:.3f} s",
                f"p95 beside a batch: {self.beside_p95:.3f} s ({self.ratio:.2f} times)",
                f"requests beside it: {self.requests}, of which failed: {self.failures}",
                f"lines: {self.lines}, of which failed: {self.lines_failed}, in {self.batch_seconds:.0f} s",
                f"the denoiser was busy {self.busy:.0%} of that time",
            )
        )


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """A batch that has ended; times by `time.perf_counter`."""

    started: float
    ended: float
    counts: Mapping[str, int]


def main() -> int:
    """Measure the service that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="a running service that asks for no API keys")
    parser.add_argument("--lines", type=int, default=1000, help="of the batch; 200 for a short run")
    parser.add_argument("--seconds", type=float, default=120.0, help="of requests, of either phase")
    parser.add_argument("--load", type=float, default=0.3, help="of the requests, as part of the capacity")
    parser.add_argument("--max-ratio", type=float, default=1.05)
    parser.add_argument("--min-busy", type=float, default=0.9)
    args = parser.parse_args()
    keep_loopback_direct()
    effect = asyncio.run(measure(args.url, args.lines, args.seconds, args.load))
    print(effect.as_text())
    has_failed = effect.failures or effect.lines_failed
    return MISSED if has_failed or effect.ratio > args.max_ratio or effect.busy < args.min_busy else 0


async def measure(url: str, num_lines: int, seconds: float, load: float) -> BatchEffect:
    """Estimate the capacity, then send the requests alone, and beside a batch.

    Args:
        url: base URL of the service.
        num_lines: lines of the batch.
        seconds: length of a phase.
        load: of the requests, as part of the capacity.
    """
    sizes = await _sizes(url)
    rng = random.Random(1)
    burst = [ScheduledRequest(0.0, any_body(rng, sizes)) for _ in range(NUM_CALIBRATING)]
    capacity = NUM_CALIBRATING / max(result.done for result in await replay(url, burst))
    schedule = poisson(load * capacity, seconds, sizes, seed=3)
    alone = await replay(url, schedule)
    async with sample_metrics(url) as series:
        sampling_started = time.perf_counter()
        drawing = asyncio.ensure_future(draw_batch(url, num_lines))
        replay_started = time.perf_counter()
        results = await replay(url, schedule)
        batch = await drawing
    last = batch.ended - replay_started
    pairs = [pair for pair in zip(alone, results, strict=True) if pair[1].due < last]
    before, beside = [first for first, _ in pairs], [second for _, second in pairs]
    window = batch.started - sampling_started, batch.ended - sampling_started
    return BatchEffect(
        capacity=capacity,
        alone_p95=_p95(before),
        beside_p95=_p95(beside),
        requests=len(beside),
        failures=sum(not result.is_good for result in before + beside),
        lines=num_lines,
        lines_failed=num_lines - batch.counts["completed"],
        batch_seconds=batch.ended - batch.started,
        busy=busy_share([sample for sample in series.samples if window[0] <= sample.at <= window[1]]),
    )


def busy_share(samples: Sequence[MetricsSample]) -> float:
    """The share of the time between the first and last sample in which the denoiser was busy."""
    if len(samples) < 2:
        return 0.0
    first, last = samples[0], samples[-1]
    replicas = max(1.0, last.value(REPLICAS, "denoise"))
    busy = last.value(BUSY, "denoise") - first.value(BUSY, "denoise")
    return busy / (replicas * (last.at - first.at))


async def draw_batch(url: str, num_lines: int) -> DrawnBatch:
    """Draw a batch, through the API of files and batches, from its first to its last line."""
    async with httpx2.AsyncClient(base_url=url, timeout=60.0) as client:
        files = {"file": ("lines.jsonl", _lines(num_lines))}
        file = _json(await client.post("/v1/files", data={"purpose": "batch"}, files=files))
        body = {"input_file_id": file["id"], "endpoint": ROUTE, "completion_window": "24h"}
        batch = _json(await client.post("/v1/batches", json=body))
        started: float | None = None
        while batch["status"] in ("validating", "in_progress"):
            if started is None and batch["status"] == "in_progress":
                started = time.perf_counter()
            await asyncio.sleep(POLL_SECONDS)
            batch = _json(await client.get(f"/v1/batches/{batch['id']}"))
        ended = time.perf_counter()
    return DrawnBatch(ended if started is None else started, ended, batch["request_counts"])


def _lines(num_lines: int) -> bytes:
    lines = (
        {
            "custom_id": str(number),
            "method": "POST",
            "url": ROUTE,
            "body": {"prompt": f"a red apple {number}", "seed": number, "num_inference_steps": STEPS},
        }
        for number in range(num_lines)
    )
    return "\n".join(map(json.dumps, lines)).encode()


def _json(answer: httpx2.Response) -> dict[str, Any]:
    content: dict[str, Any] = answer.raise_for_status().json()
    return content


def _p95(results: Sequence[RequestResult]) -> float:
    return percentile([result.latency for result in results if result.is_good], 95)


async def _sizes(url: str) -> list[str]:
    """The image sizes of the default model."""
    async with httpx2.AsyncClient(base_url=url) as client:
        return list(_json(await client.get("/v1/models"))["data"][0]["sizes"])


if __name__ == "__main__":
    sys.exit(main())
