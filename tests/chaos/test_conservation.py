"""The accounting adds up under failures: mixed load, aborts, refusals, and a denoiser that is killed.

The load has generations, streams with previews, edits, inpaintings and images that are answered as links.
"""

import asyncio
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.live import LiveService, serving
from tests.service.http.uploads import data_url, mask, photo, png

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
SAMPLE_SECONDS = 0.05
POLL_SECONDS = 0.5  # between requests for the list of replicas
RATE = 3.0  # requests per second, more than one core of denoising can draw
SHORT, LONG = 40.0, 600.0
RECORDS_SECONDS = 60.0  # between reads of the last thousand records
GONE = "gone"  # the client stopped waiting
SETTLING_SECONDS = 3.0  # after which the last report has arrived at the ledger
OUTCOMES = {200: "done", 400: "refused", 429: "refused"}
# A request whose client leaves long before it is done, and the seconds after which it does.
LEAVES = ({"prompt": "rocket", "n": 4, "num_inference_steps": 200, "solver": "heun"}, 0.5)
SIDE = 128  # of the images that are edited, that of the model

Records = set[tuple[str, str, int]]  # request id, outcome and images sent


class ThreadSampler(threading.Thread):
    """Measures the stages' worker threads from outside, by the kernel's scheduler statistics.

    A thread's seconds are those in which it ran or waited for a core.
    Each stage works with one thread here, so these are all the seconds that its replica spends, but for the
    milliseconds in which a thread of their own reads uploads.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._seconds: dict[tuple[str, int, int], float] = {}  # by stage, process and thread
        self._done = threading.Event()

    def run(self) -> None:
        polled = 0.0
        while not self._done.wait(SAMPLE_SECONDS):
            if time.monotonic() > polled + POLL_SECONDS:
                self._find_threads()
                polled = time.monotonic()
            self._read()

    def stop(self) -> dict[str, float]:
        """Stop, and return seconds by stage since each thread began."""
        self._done.set()
        self.join()
        self._read()
        by_stage: defaultdict[str, float] = defaultdict(float)
        for (stage, _, _), seconds in self._seconds.items():
            by_stage[stage] += seconds
        return by_stage

    def _find_threads(self) -> None:
        try:
            replicas = httpx2.get(f"{self._url}/v1/accounting", timeout=5.0).json()["replicas"]
        except (httpx2.HTTPError, KeyError):
            return
        for replica in replicas:
            self._seconds.setdefault((replica["stage"], replica["process"], replica["thread"]), 0.0)

    def _read(self) -> None:
        for stage, process, thread in list(self._seconds):
            try:
                ran, waited, _ = Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()
            except OSError:  # it is dead, and spends nothing any more
                continue
            self._seconds[stage, process, thread] = (int(ran) + int(waited)) / 1e9


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    threads = {f"SAFELIGHT_{stage}_THREADS": "1" for stage in ("ENCODE", "DENOISE", "DECODE")}
    with serving(tmp_path, env=os.environ | threads | {"SAFELIGHT_MAX_PICTURES": "12"}) as service:
        yield service


def test_every_second_and_every_request_is_accounted_for(service: LiveService) -> None:
    _check_conservation(service, SHORT)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_second_and_every_request_is_accounted_for_over_ten_minutes(service: LiveService) -> None:
    _check_conservation(service, LONG)


def _check_conservation(service: LiveService, seconds: float) -> None:
    """Load the service for `seconds`, then compare its accounting with what clients and the kernel saw."""
    sampler = ThreadSampler(service.url)
    sampler.start()
    before = httpx2.get(f"{service.url}/v1/accounting").json()["requests"]
    load = ChaosLoad(service)
    asyncio.run(load.run(seconds))
    accounting = httpx2.get(f"{service.url}/v1/accounting", timeout=10).json()
    thread_seconds = sampler.stop()
    requests = {outcome: number - before[outcome] for outcome, number in accounting["requests"].items()}
    sys.stdout.write(  # pytest shows it when the test fails
        f"answers: {Counter(load.answers.values())}, requests: {requests}, "
        f"thread seconds: {dict(thread_seconds)}, balance: {accounting['balance']}, "
        f"kinds: {load.kinds}, stored: {accounting['stored_bytes']} bytes\n"
    )
    assert load.kinds.keys() == {_kind_of(fields) for fields in MIX}
    assert accounting["store_seconds"] > 0.0
    _check_requests(load, requests)
    assert accounting["images"] == _count_images(load)
    _check_seconds(accounting["balance"], sum(thread_seconds.values()), is_long=seconds >= LONG)


def _check_requests(load: "ChaosLoad", requests: Mapping[str, int]) -> None:
    """Every request has exactly one record, and the outcome that its client saw.

    `requests` are the service's numbers by outcome.
    """
    records = {request_id: outcome for request_id, outcome, _ in load.records}
    assert {200, 400, 429, GONE} <= set(load.answers.values())
    assert len(records) == len(load.records) == sum(requests.values())  # one record each
    num_aborted = 0
    for request_id, answer in load.answers.items():
        outcome = records.get(request_id)
        if answer in OUTCOMES:
            assert outcome == OUTCOMES[answer], (request_id, answer)
        else:  # a request whose client left may not have arrived, or may have been done just before
            assert answer == GONE, (request_id, answer)
            num_aborted += outcome == "aborted"
    assert requests["aborted"] == num_aborted


def _count_images(load: "ChaosLoad") -> int:
    """The images of all requests, each record's checked against its request.

    A request whose client left may have been done just before: nobody saw its images, which were made. Of a
    stream that ended early, those count that were sent before.
    """
    num_cut = 0
    for request_id, outcome, images in load.records:
        if outcome != "done" and request_id in load.streams:
            assert images < load.sizes[request_id], request_id
            num_cut += images
        else:
            assert images == (load.sizes[request_id] if outcome == "done" else 0), request_id
    done = sum(images for _, _, images in load.records) - num_cut
    unseen = {request_id for request_id, outcome, _ in load.records if outcome == "done"}
    unseen -= {request_id for request_id, answer in load.answers.items() if answer == 200}
    assert done == load.num_images + sum(load.sizes[request_id] for request_id in unseen)
    return done + num_cut


def _check_seconds(balance: Mapping[str, Any], thread_seconds: float, is_long: bool) -> None:
    """The busy seconds of all stages are those that the kernel saw, and nearly all belong to requests."""
    stages = balance["stages"]
    for stage, parts in stages.items():
        smallest = min(value for name, value in parts.items() if name != "busy")
        assert smallest >= -0.01 * parts["busy"], stage
    busy = sum(parts["busy"] for parts in stages.values())
    assert busy == pytest.approx(thread_seconds, rel=0.02)
    unattributed = balance["unattributed_share"]
    if is_long:
        assert unattributed < 0.05
    # Two denoisers have started and one has died, which must not count in a short run.
    one_time = sum(parts["starting"] + parts["lost"] for parts in stages.values())
    assert unattributed * busy - one_time < 0.05 * busy


@dataclass
class ChaosLoad:
    """Requests of all kinds at random times, half-way through which the denoiser is killed."""

    service: LiveService
    answers: dict[str, object] = field(default_factory=dict)  # by request id: a status, or GONE
    sizes: dict[str, int] = field(default_factory=dict)  # images requested, by request id
    streams: set[str] = field(default_factory=set)  # the ids of streamed requests
    num_images: int = 0  # that arrived
    kinds: Counter[str] = field(default_factory=Counter)  # of the requests that were done
    records: Records = field(default_factory=set)  # that the service lists
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    async def run(self, seconds: float) -> None:
        tasks: list[asyncio.Task[None]] = []
        is_killed, records_read = False, 0.0
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=self.service.url, timeout=120, limits=limits) as client:
            await self._send(
                client, "chaos-leaves", *LEAVES
            )  # later ones may be refused before they can leave
            started = time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                request = self._random_request()
                tasks.append(asyncio.ensure_future(self._send(client, f"chaos-{len(tasks)}", *request)))
                if elapsed > seconds / 2 and not is_killed:
                    _kill_denoiser(self.service)
                    is_killed = True
                if elapsed > records_read + RECORDS_SECONDS:
                    records_read = elapsed
                    self.records |= await _read_records(client)
                await asyncio.sleep(self.rng.expovariate(RATE))
            await asyncio.gather(*tasks)
            # On a slow machine, all of a kind may have been refused; now nothing waits.
            for number, fields in enumerate(MIX):
                if _kind_of(fields) not in self.kinds:
                    await self._send(client, f"chaos-alone-{number}", ALONE | fields, None)
            await asyncio.sleep(SETTLING_SECONDS)
            self.records |= await _read_records(client)

    async def _send(
        self, client: httpx2.AsyncClient, request_id: str, body: Mapping[str, Any], timeout: float | None
    ) -> None:
        self.sizes[request_id] = body["n"]
        self.streams |= {request_id} if "stream" in body else set()
        route = EDITS if "image" in body else ROUTE
        try:
            response = await asyncio.wait_for(
                client.post(route, json=body, headers={"x-request-id": request_id}), timeout
            )
        except TimeoutError:
            self.answers[request_id] = GONE
            return
        self.answers[request_id] = response.status_code
        if response.status_code == 200:
            self.num_images += _num_images(response)
            self.kinds[_kind_of(body)] += 1

    def _random_request(self) -> tuple[dict[str, Any], float | None]:
        """A body, one in ten invalid, and for some the seconds after which the client leaves."""
        rng = self.rng
        fate = rng.random()
        body: dict[str, Any] = {
            "prompt": rng.choice(["a red apple", "rocket", "cat face", f"{rng.randrange(1000)} umbrellas"]),
            "n": rng.choice([1, 1, 1, 4]),
            "num_inference_steps": rng.choice([8, 20, 30, 40]),
            "guidance_scale": rng.choice([1.0, 5.0]),
            "solver": rng.choice(["dpmpp_2m", "heun", "ddim"]),
            "seed": rng.randrange(1000),
        }
        body |= rng.choice(MIX)
        if fate < 0.1:
            body["num_inference_steps"] = 0
        return body, rng.uniform(0.2, 1.0) if fate > 0.85 else None


SOURCE, MASK = data_url(png(photo(SIDE, SIDE))), data_url(png(mask(SIDE, SIDE)))
STREAM: dict[str, Any] = {"stream": True, "partial_images": 2}
ALONE: dict[str, Any] = {"prompt": "rocket", "n": 1, "num_inference_steps": 8, "seed": 1}
# What is added to a generation.
MIX: tuple[dict[str, Any], ...] = (
    {},
    {},
    STREAM,
    {"image": SOURCE, "strength": 0.7},
    {"image": SOURCE, "mask": MASK},
    {"image": SOURCE, "mask": MASK} | STREAM,
    {"response_format": "url", "output_format": "webp"},
)


def _kind_of(body: Mapping[str, Any]) -> str:
    """The fields by which `body` is another request than a generation."""
    fields = ("stream", "image", "mask", "response_format")
    return " ".join(field for field in fields if field in body)


def _num_images(response: httpx2.Response) -> int:
    """The finished images in an answer; those of a stream are events, of which none is an error."""
    if response.headers["content-type"].startswith("text/event-stream"):
        assert "event: error" not in response.text, response.text
        return response.text.count(".completed\ndata:")
    return len(response.json()["data"])


async def _read_records(client: httpx2.AsyncClient) -> Records:
    """The last thousand records of this load; asserts that no request has two."""
    latest = (await client.get("/v1/accounting", params={"latest": 1000})).json()["latest"]
    records = [
        (record["request_id"], record["outcome"], record["images"])
        for record in latest
        if record["request_id"].startswith("chaos-")
    ]
    assert len({request_id for request_id, *_ in records}) == len(records)
    return set(records)


def _kill_denoiser(service: LiveService) -> None:
    title = re.compile("ServeReplica:safelight:Denoiser(?!-)")  # and not that of another model
    family = psutil.Process(service.process.pid).children(recursive=True)
    denoiser = next(child for child in family if title.search(" ".join(child.cmdline())))
    os.kill(denoiser.pid, signal.SIGKILL)
