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
    answers = asyncio.run(_load(service, seconds))
    time.sleep(SETTLED_SECONDS)
    told = httpx.get(f"{service.url}/v1/accounting", params={"latest": 1000}).json()
    seen = sampler.busy()
    requests = {outcome: number - before[outcome] for outcome, number in told["requests"].items()}
    print({"answers": dict(answers), "requests": requests, "seen": dict(seen), "balance": told["balance"]})  # noqa: T201

    assert answers["aborted"] > 0 and answers[400] > 0 and answers[429] > 0 and answers[200] > 0
    assert requests["done"] == answers[200]
    assert requests["refused"] == answers[400] + answers[429]
    assert requests["aborted"] == answers["aborted"]
    assert requests["failed"] == sum(number for answer, number in answers.items() if answer not in (200, 400, 429, "aborted", "images"))
    assert told["images"] == answers["images"]

    stages = told["balance"]["stages"]
    for stage, balance in stages.items():
        parts = [value for name, value in balance.items() if name != "busy"]
        assert balance["busy"] == pytest.approx(sum(parts), abs=1e-6)
        assert min(parts) >= -0.01 * balance["busy"]
        charged = sum(account["stages"][stage]["device_seconds"] for account in told["accounts"])
        assert charged == pytest.approx(balance["requests"])
    busy = sum(balance["busy"] for balance in stages.values())
    assert busy == pytest.approx(sum(seen.values()), rel=0.02)
    unattributed = told["balance"]["unattributed_share"]
    if seconds >= LONG:
        assert unattributed < 0.05
    # Two denoisers have started and one has died, which a short run must not weigh.
    once = sum(balance["starting"] + balance["lost"] for balance in stages.values())
    assert unattributed * busy - once < 0.05 * busy


async def _load(service: LiveService, seconds: float) -> Counter[object]:
    """Requests of all kinds at their own times; half-way the denoiser is killed. Counts what became of them, and their pictures."""
    rng, answers, tasks = random.Random(7), Counter[object](), []
    killed = False
    async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        started = time.monotonic()
        while (now := time.monotonic() - started) < seconds:
            tasks.append(asyncio.ensure_future(_ask(client, rng, answers)))
            if now > seconds / 2 and not killed:
                _kill_the_denoiser(service)
                killed = True
            await asyncio.sleep(rng.expovariate(RATE))
        await asyncio.gather(*tasks)
    return answers


async def _ask(client: httpx.AsyncClient, rng: random.Random, answers: Counter[object]) -> None:
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
        answer = await asyncio.wait_for(client.post(ROUTE, json=body), patience)
    except TimeoutError:
        answers["aborted"] += 1
        return
    answers[answer.status_code] += 1
    if answer.status_code == 200:
        answers["images"] += len(answer.json()["data"])


def _kill_the_denoiser(service: LiveService) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    denoiser = next(child for child in family if "ServeReplica:safelight:Denoiser" in " ".join(child.cmdline()))
    os.kill(denoiser.pid, signal.SIGKILL)
