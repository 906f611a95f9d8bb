"""`python -m loadtests.overload [--url URL]`: promises under open-loop overload.

Mixed requests come at random at several times the capacity, which is measured before with as many requests
at a time as fill the device. A refused request is sent once more when its Retry-After has passed. Without
`--url` a service is started. Work is counted in floating-point operations, as the answers tell them. The exit
status is 1 if a figure misses its target.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil

from loadtests.replay import ROUTE
from loadtests.results import percentile
from loadtests.service import Service, keep_loopback_direct, service
from loadtests.traces import Body, any_body

CALIBRATING = 24  # requests at a time while the capacity is measured
ALONE = 5  # requests one after another, whose latency is the normal one
NORMAL_RATIO = 2.0  # of the normal latency, for a request after the overload
RECOVERY_SECONDS = 60.0
RETRY_LIMIT = 60.0  # a Retry-After that ends later than this after the overload is not waited for
MISSED = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request. Times are seconds since the start."""

    sent: float
    done: float
    status: int  # 0: none
    flops: float = 0.0
    promised: float | None = None  # seconds
    forecast: float | None = None  # seconds
    taken: float = 0.0  # seconds, as the service says
    retry_after: int | None = None
    is_retry: bool = False

    @property
    def seconds(self) -> float:
        return self.done - self.sent

    @property
    def is_kept(self) -> bool:
        """Whether the images were there as promised."""
        return self.status == 200 and (self.promised is None or self.taken <= self.promised)


@dataclass(frozen=True, slots=True)
class Overload:
    """What was measured. Shares are from 0 to 1; None: there was nothing to measure.

    Attributes:
        factor: The load, as a multiple of the capacity.
        capacity: Requests of the mix a second.
        offered: Requests sent, without those sent again.
        admitted: Of all.
        goodput: Work of images within their promise while the load lasted, as a part of the capacity.
        within: Share of the admitted that were done as promised.
        refusal_p95: Seconds until a refusal.
        admitted_again: Share of refused requests that were let in when they came again.
        sent_again: How many came again.
        forecast_error: Median error of the forecasts at admission.
        failed: Answers that are neither images nor a refusal.
        memory_before: Bytes of the service's processes.
        memory_after: The same after the load.
        seconds_to_normal: From the end of the load until a lone request was as fast as before.
    """

    factor: float
    capacity: float
    offered: int
    admitted: int
    goodput: float
    within: float | None
    refusal_p95: float | None
    admitted_again: float | None
    sent_again: int
    forecast_error: float | None
    failed: int
    memory_before: int | None
    memory_after: int | None
    seconds_to_normal: float | None

    @property
    def misses(self) -> list[str]:
        """The figures that miss their target."""
        targets = {
            "goodput": self.goodput >= 0.9,
            "within": (self.within or 0.0) >= 0.95,
            "refusal_p95": (self.refusal_p95 or 0.0) <= 0.1,
            "admitted_again": self.admitted_again is None or self.admitted_again >= 0.9,
            "forecast_error": (self.forecast_error or 0.0) <= 0.1,
            "failed": self.failed == 0,
            "seconds_to_normal": self.seconds_to_normal is not None and self.seconds_to_normal <= 10.0,
        }
        return [name for name, is_met in targets.items() if not is_met]


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running service; default: one is started")
    parser.add_argument("--pid", type=int, help="its process, whose memory is measured")
    parser.add_argument("--model", default="emoji-128", help="of the service that is started")
    parser.add_argument("--factor", type=float, default=5.0, help="the load as a multiple of the capacity")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the overload")
    parser.add_argument("--calibrate", type=float, default=20.0, help="seconds in which it is measured")
    args = parser.parse_args()
    keep_loopback_direct()
    with _target(args.url, args.pid, args.model) as target:
        result = asyncio.run(measure(target, args.factor, args.seconds, args.calibrate))
    print(json.dumps(asdict(result), indent=1))
    if result.misses:
        print("missed:", ", ".join(result.misses))
    return MISSED if result.misses else 0


@contextmanager
def _target(url: str | None, pid: int | None, model: str) -> Iterator[Service]:
    if url is not None:
        yield Service(url, pid)
        return
    with TemporaryDirectory() as folder, service(model, Path(folder) / "service.log") as started:
        yield started


async def measure(target: Service, factor: float, seconds: float, calibrate: float) -> Overload:
    """Measure the capacity, overload the service, and wait until it is as before."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx2.AsyncClient(base_url=target.url, timeout=330.0, limits=limits) as client:
        sender = Client(client)
        sizes = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["sizes"]
        rng = random.Random(1)
        normal = statistics.median([(await sender.send(_lone_body(sizes))).seconds for _ in range(ALONE)])
        capacity, rate = await _capacity(sender, rng, sizes, calibrate)
        memory_before = _memory(target.pid)
        started = sender.now
        await _overload(sender, rng, sizes, factor * capacity, seconds)
        ended = started + seconds
        recovery = await _recovery(sender, sizes, normal)
        await sender.settle()
        return _summary(
            sender.answers,
            factor,
            capacity,
            rate,
            started,
            ended,
            memory_before,
            _memory(target.pid),
            recovery,
        )


class Client:
    """Sends requests and keeps the answers of the overload."""

    def __init__(self, client: httpx2.AsyncClient):
        self._client = client
        self._started = time.perf_counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers: list[Answer] = []

    @property
    def now(self) -> float:
        return time.perf_counter() - self._started

    async def send(self, body: Body, is_retry: bool = False) -> Answer:
        """Send one request."""
        sent = self.now
        try:
            response = await self._client.post(ROUTE, json=body)
        except httpx2.HTTPError:
            return Answer(sent, self.now, 0, is_retry=is_retry)
        done = self.now
        if response.status_code != 200:
            retry = response.headers.get("retry-after")
            return Answer(
                sent, done, response.status_code, retry_after=retry and int(retry), is_retry=is_retry
            )
        cost = response.json()["usage"]["safelight"]
        return Answer(
            sent,
            done,
            200,
            cost["flops"],
            cost["promised_seconds"],
            cost["forecast_seconds"],
            cost["seconds"],
            is_retry=is_retry,
        )

    def start(self, body: Body, last_retry: float) -> None:
        """Send a request, and once more when it may come again, if that is not after `last_retry`."""
        task = asyncio.ensure_future(self._send_twice(body, last_retry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for all answers."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _send_twice(self, body: Body, last_retry: float) -> None:
        answer = await self.send(body)
        self.answers.append(answer)
        if answer.retry_after is None or self.now + answer.retry_after > last_retry:
            return
        await asyncio.sleep(answer.retry_after)
        self.answers.append(await self.send(body, is_retry=True))


def _lone_body(sizes: Sequence[str]) -> Body:
    return {"prompt": "a red apple", "size": sizes[0], "num_inference_steps": 8, "seed": 1}


async def _capacity(
    client: Client, rng: random.Random, sizes: Sequence[str], seconds: float
) -> tuple[float, float]:
    """Requests of the mix a second, and operations a second, with as many at a time as fill the device."""
    started = client.now
    answers: list[Answer] = []

    async def keep_sending() -> None:
        while client.now - started < seconds:
            answer = await client.send(any_body(rng, sizes))
            if answer.status == 200:
                answers.append(answer)

    await asyncio.gather(*(keep_sending() for _ in range(CALIBRATING)))
    # those that end after all others have no full device
    inside = [answer for answer in answers if answer.done - started <= seconds]
    rate = sum(answer.flops for answer in inside) / seconds
    mean = statistics.mean(answer.flops for answer in answers)
    return rate / mean, rate


async def _overload(
    client: Client, rng: random.Random, sizes: Sequence[str], rate: float, seconds: float
) -> None:
    """Send requests at random, `rate` a second, whether or not earlier ones are answered."""
    started = at = client.now
    while (at := at + rng.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, at - client.now))
        client.start(any_body(rng, sizes), started + seconds + RETRY_LIMIT)


async def _recovery(client: Client, sizes: Sequence[str], normal: float) -> float | None:
    """Seconds until a lone request takes no longer than `NORMAL_RATIO` times the normal; None: too many."""
    started = client.now
    while client.now - started < RECOVERY_SECONDS:
        before = client.now - started
        answer = await client.send(_lone_body(sizes))
        if answer.status == 200 and answer.seconds <= NORMAL_RATIO * normal:
            return before
        await asyncio.sleep(0.5)
    return None


def _memory(pid: int | None) -> int | None:
    """Bytes that a process and its children do not share with others."""
    if pid is None:
        return None
    root = psutil.Process(pid)
    return sum(process.memory_full_info().uss for process in (root, *root.children(recursive=True)))


def _summary(
    answers: Sequence[Answer],
    factor: float,
    capacity: float,
    rate: float,
    started: float,
    ended: float,
    memory_before: int | None,
    memory_after: int | None,
    recovery: float | None,
) -> Overload:
    """The figures of a run; see `measure` and `Overload`."""
    admitted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    again = [answer for answer in answers if answer.is_retry]
    errors = [abs(answer.taken / answer.forecast - 1) for answer in admitted if answer.forecast is not None]
    kept = [answer for answer in admitted if answer.is_kept and started <= answer.done <= ended]
    return Overload(
        factor=factor,
        capacity=capacity,
        offered=sum(not answer.is_retry for answer in answers),
        admitted=len(admitted),
        goodput=sum(answer.flops for answer in kept) / (ended - started) / rate,
        within=_share([answer.is_kept for answer in admitted]),
        refusal_p95=percentile([answer.seconds for answer in refused], 95) if refused else None,
        admitted_again=_share([answer.status == 200 for answer in again]),
        sent_again=len(again),
        forecast_error=statistics.median(errors) if errors else None,
        failed=len(answers) - len(admitted) - len(refused),
        memory_before=memory_before,
        memory_after=memory_after,
        seconds_to_normal=recovery,
    )


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


if __name__ == "__main__":
    sys.exit(main())
