"""Open-loop replay: requests leave at their own times, so that a slow service meets a queue and not a patient client.

Latency counts from when a request was due, not from when it could be sent: what a closed loop of users leaves out
("coordinated omission", Tene 2013).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from loadtests.image_checks import fault_of
from loadtests.traces import Arrival

ROUTE = "/v1/images/generations"
LATE = 0.05  # seconds behind its time from which the replayer itself, not the service, is the slow one


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one arrival; times in seconds from the start of the replay."""

    due: float
    sent: float
    done: float
    status: int  # 0: no answer at all
    fault: str | None  # of an answer that should hold images, or why there is none
    images: int
    device_seconds: float  # the service's own account
    nfe: int

    @property
    def latency(self) -> float:
        return self.done - self.due

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.fault is None


async def replay(
    url: str,
    arrivals: Sequence[Arrival],
    timeout: float = 300.0,
    progress: Callable[[int], None] = lambda done: None,
    key: str | None = None,
) -> list[Result]:
    """Every arrival sent to the service at `url`; results in order of arrival."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    done = 0
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, headers=headers) as client:
        started = time.perf_counter()

        async def one(arrival: Arrival) -> Result:
            nonlocal done
            result = await _ask(client, arrival, started)
            done += 1
            progress(done)
            return result

        tasks = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, started + arrival.at - time.perf_counter()))
            tasks.append(asyncio.ensure_future(one(arrival)))
        return list(await asyncio.gather(*tasks))


def was_late(results: Sequence[Result]) -> bool:
    """Whether this machine could not send as it should have, so that the latencies are not the service's alone."""
    return sum(result.sent - result.due > LATE for result in results) > 0.01 * len(results)


async def _ask(client: httpx.AsyncClient, arrival: Arrival, started: float) -> Result:
    sent = time.perf_counter() - started
    try:
        response = await client.post(ROUTE, json=arrival.body)
    except httpx.HTTPError as error:
        return Result(
            arrival.at,
            sent,
            time.perf_counter() - started,
            0,
            f"no answer: {type(error).__name__}",
            0,
            0.0,
            0,
        )
    done = time.perf_counter() - started  # before the image is looked at, which is the client's time
    try:
        answer = response.json()
    except ValueError:  # a proxy's own words
        return Result(
            arrival.at, sent, done, response.status_code, f"no JSON, status {response.status_code}", 0, 0.0, 0
        )
    if response.status_code != 200:
        return Result(arrival.at, sent, done, response.status_code, answer["error"]["code"], 0, 0.0, 0)
    cost = answer["usage"]["safelight"]
    fault = fault_of(arrival.body, answer)
    return Result(
        arrival.at,
        sent,
        done,
        200,
        fault,
        len(answer["data"]),
        sum(cost["device_seconds"].values()),
        cost["nfe"],
    )
