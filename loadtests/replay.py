"""Open-loop replay: requests are sent at their scheduled times, so that a slow service builds up a queue.

Latency counts from the scheduled time, not from when the request was sent. A closed loop of users leaves that
wait out ("coordinated omission", Tene 2013).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import httpx2

from loadtests.image_checks import fault_of
from loadtests.results import RequestResult
from loadtests.traces import ScheduledRequest

ROUTE = "/v1/images/generations"
# A request sent later than this, in seconds, was delayed by the client and not by the service.
BEHIND_SCHEDULE_SECONDS = 0.05


async def replay(
    url: str,
    schedule: Sequence[ScheduledRequest],
    timeout: float = 300.0,
    progress: Callable[[int], None] = lambda done: None,
    key: str | None = None,
) -> list[RequestResult]:
    """Send every request of `schedule` at its time.

    Args:
        url: base URL of the service.
        schedule: requests in order of time.
        timeout: seconds to wait for an answer.
        progress: called with the number of answered requests.
        key: sent as bearer token, if any.

    Returns:
        Results in the order of the schedule.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    done = 0
    async with httpx2.AsyncClient(base_url=url, timeout=timeout, limits=limits, headers=headers) as client:
        started = time.perf_counter()

        async def send(request: ScheduledRequest) -> RequestResult:
            nonlocal done
            result = await _send(client, request, started)
            done += 1
            progress(done)
            return result

        tasks = []
        for request in schedule:
            await asyncio.sleep(max(0.0, started + request.at - time.perf_counter()))
            tasks.append(asyncio.ensure_future(send(request)))
        return list(await asyncio.gather(*tasks))


def was_behind_schedule(results: Sequence[RequestResult]) -> bool:
    """Whether the client sent over 1 % of the requests too late, so that latencies include its own delay."""
    num_late = sum(result.sent - result.due > BEHIND_SCHEDULE_SECONDS for result in results)
    return num_late > 0.01 * len(results)


async def _send(client: httpx2.AsyncClient, request: ScheduledRequest, started: float) -> RequestResult:
    sent = time.perf_counter() - started
    try:
        response = await client.post(ROUTE, json=request.body)
    except httpx2.HTTPError as error:
        no_answer = f"no answer: {type(error).__name__}"
        return RequestResult(request.at, sent, time.perf_counter() - started, 0, no_answer, 0, 0.0, 0)
    done = time.perf_counter() - started  # taken before the image is checked, which is the client's time
    result = partial(RequestResult, request.at, sent, done, response.status_code)
    try:
        answer = response.json()
    except ValueError:  # for example an error page of a proxy
        return result(f"no JSON, status {response.status_code}", 0, 0.0, 0)
    if response.status_code != 200:
        return result(answer["error"]["code"], 0, 0.0, 0)
    cost = answer["usage"]["safelight"]
    fault = fault_of(request.body, answer)
    return result(fault, len(answer["data"]), sum(cost["device_seconds"].values()), cost["nfe"])
