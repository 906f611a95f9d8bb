"""The accounts add up while things go wrong: a mixed load with aborts, refusals and a denoiser that is killed in the middle of it."""

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.live import LiveService, serving

ROUTE = "/v1/images/generations"
SAMPLE_SECONDS = 0.05
RATE = 3.0  # requests a second, more than one core of denoising can draw
SHORT, LONG = 40.0, 600.0
LOOK_SECONDS = 60.0  # between two looks at the last thousand records
GONE = "gone"  # what became of a client that did not wait
SETTLED_SECONDS = 3.0  # within which the last statement has come


class Sampler(threading.Thread):
    """Watches the stages' working threads from outside: the time that the kernel saw each run, or wait for a processor.

    A stage works with one thread here, so that this is all that its replica spends.
    """

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self._url = url
        self._threads: dict[tuple[str, int, int], float] = {}
        self._done = threading.Event()

    def run(self) -> None:
        asked = 0.0
        while not self._done.wait(SAMPLE_SECONDS):
            if time.monotonic() > asked + 0.5:
                self._ask()
                asked = time.monotonic()
            self._read()

    def busy(self) -> Counter[str]:
        """Seconds by stage, since each thread began."""
        self._done.set()
        self.join()
        self._read()
        seconds = Counter[str]()
        for (stage, _, _), spent in self._threads.items():
            seconds[stage] += spent
        return seconds

    def _ask(self) -> None:
        try:
            told = httpx.get(f"{self._url}/v1/accounting", timeout=5.0).json()["replicas"]
        except (httpx.HTTPError, KeyError):
            return
        for replica in told:
            self._threads.setdefault((replica["stage"], replica["process"], replica["thread"]), 0.0)

    def _read(self) -> None:
        for stage, process, thread in list(self._threads):
            try:
                ran, waited, _ = Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()
            except OSError:  # it is dead, and spends nothing any more
                continue
            self._threads[stage, process, thread] = (int(ran) + int(waited)) / 1e9


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    threads = {f"SAFELIGHT_{stage}_THREADS": "1" for stage in ("ENCODE", "DENOISE", "DECODE")}
    with serving(tmp_path, env=os.environ | threads | {"SAFELIGHT_MAX_PICTURES": "12"}) as service:
        yield service


def test_every_second_and_every_request_is_accounted_for(service: LiveService) -> None:
    _conserve(service, SHORT)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_second_and_every_request_is_accounted_for_over_ten_minutes(service: LiveService) -> None:
    _conserve(service, LONG)


def _conserve(service: LiveService, seconds: float) -> None:
    sampler = Sampler(service.url)
    sampler.start()
    before = httpx.get(f"{service.url}/v1/accounting").json()["requests"]
    asked, images, told_ids = asyncio.run(_load(service, seconds))
    records = dict(told_ids)
    told = httpx.get(f"{service.url}/v1/accounting", timeout=10).json()
    seen = sampler.busy()
    requests = {outcome: number - before[outcome] for outcome, number in told["requests"].items()}
    print(
        {
            "answers": Counter(asked.values()),
            "requests": requests,
            "seen": dict(seen),
            "balance": told["balance"],
        }
    )  # noqa: T201

    assert {200, 400, 429, GONE} <= set(asked.values())
    assert len(records) == len(told_ids) == sum(requests.values())  # one record each
    outcomes = {200: "done", 400: "refused", 429: "refused"}
    for request_id, answer in asked.items():
        # Of a client that went away the service may have seen nothing, or may have been done just before.
        assert records.get(request_id) == outcomes[answer] if answer in outcomes else answer == GONE, (
            request_id,
            answer,
        )
    assert requests["aborted"] == sum(
        records.get(request_id) == "aborted" for request_id, answer in asked.items() if answer == GONE
    )
    assert told["images"] >= images

    stages = told["balance"]["stages"]
    for stage, balance in stages.items():
        parts = [value for name, value in balance.items() if name != "busy"]
        assert min(parts) >= -0.01 * balance["busy"], stage
    busy = sum(balance["busy"] for balance in stages.values())
    assert busy == pytest.approx(sum(seen.values()), rel=0.02)
    unattributed = told["balance"]["unattributed_share"]
    if seconds >= LONG:
        assert unattributed < 0.05
    # Two denoisers have started and one has died, which a short run must not weigh.
    once = sum(balance["starting"] + balance["lost"] for balance in stages.values())
    assert unattributed * busy - once < 0.05 * busy


Records = set[tuple[str, str]]  # id and outcome


async def _load(service: LiveService, seconds: float) -> tuple[dict[str, object], int, Records]:
    """Requests of all kinds at their own times; half-way the denoiser is killed.

    What became of each by its id, how many images came, and the service's records of them.
    """
    rng, answers, images, tasks, records = random.Random(7), dict[str, object](), list[int](), [], Records()
    killed, looked = False, 0.0
    async with httpx.AsyncClient(
        base_url=service.url, timeout=120, limits=httpx.Limits(max_connections=None)
    ) as client:
        started = time.monotonic()
        while (now := time.monotonic() - started) < seconds:
            tasks.append(asyncio.ensure_future(_ask(client, rng, f"chaos-{len(tasks)}", answers, images)))
            if now > seconds / 2 and not killed:
                _kill_the_denoiser(service)
                killed = True
            if now > looked + LOOK_SECONDS:
                looked = now
                records |= await _records(client)
            await asyncio.sleep(rng.expovariate(RATE))
        await asyncio.gather(*tasks)
        await asyncio.sleep(SETTLED_SECONDS)
        records |= await _records(client)
    return answers, sum(images), records


async def _records(client: httpx.AsyncClient) -> Records:
    """The last thousand. No id twice."""
    latest = (await client.get("/v1/accounting", params={"latest": 1000})).json()["latest"]
    mine = [
        (each["request_id"], each["outcome"]) for each in latest if each["request_id"].startswith("chaos-")
    ]
    assert len({request_id for request_id, _ in mine}) == len(mine)
    return set(mine)


async def _ask(
    client: httpx.AsyncClient,
    rng: random.Random,
    request_id: str,
    answers: dict[str, object],
    images: list[int],
) -> None:
    kind = rng.random()
    body = {
        "prompt": rng.choice(["a red apple", "rocket", "cat face", f"{rng.randrange(1000)} umbrellas"]),
        "n": rng.choice([1, 1, 1, 4]),
        "num_inference_steps": rng.choice([8, 20, 30, 40]),
        "guidance_scale": rng.choice([1.0, 5.0]),
        "solver": rng.choice(["dpmpp_2m", "heun", "ddim"]),
        "seed": rng.randrange(1000),
    }
    if kind < 0.1:
        body["num_inference_steps"] = 0
    patience = rng.uniform(0.2, 1.0) if kind > 0.85 else None
    try:
        answer = await asyncio.wait_for(
            client.post(ROUTE, json=body, headers={"x-request-id": request_id}), patience
        )
    except TimeoutError:
        answers[request_id] = GONE
        return
    answers[request_id] = answer.status_code
    if answer.status_code == 200:
        images.append(len(answer.json()["data"]))


def _kill_the_denoiser(service: LiveService) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    denoiser = next(
        child for child in family if "ServeReplica:safelight:Denoiser" in " ".join(child.cmdline())
    )
    os.kill(denoiser.pid, signal.SIGKILL)
