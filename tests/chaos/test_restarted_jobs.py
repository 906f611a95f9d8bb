"""Jobs that were accepted are drawn, with the bytes of a plain request, although the service ends."""

import base64
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.live import LiveService, serving

ROUTE, JOBS = "/v1/images/generations", "/v1/images/jobs"
NUM_JOBS = 8
PATIENCE = 180.0


def body(seed: int) -> dict[str, object]:
    return {"prompt": "a red apple", "seed": seed, "num_inference_steps": 100}


def submit(service: LiveService) -> list[str]:
    with httpx2.Client(base_url=service.url, timeout=PATIENCE) as http:
        answers = [
            http.post(ROUTE, json=body(seed), headers={"prefer": "respond-async"}) for seed in range(NUM_JOBS)
        ]
    assert [answer.status_code for answer in answers] == [202] * NUM_JOBS
    return [answer.json()["id"] for answer in answers]


def wait_for(http: httpx2.Client, job: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while (state := http.get(f"{JOBS}/{job}").json()["state"]) != "done":
        assert state in ("queued", "running") and time.monotonic() < give_up, state
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_go_on_when_the_service_starts_again(tmp_path: Path, how: signal.Signals) -> None:
    env = os.environ | {"SAFELIGHT_SHUTDOWN_SECONDS": "1"}
    with serving(tmp_path, "--model", "tiny", env=env) as service:
        jobs = submit(service)
        service.process.send_signal(how)
        service.process.wait(PATIENCE)
    with (
        serving(tmp_path, "--model", "tiny", env=env) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE) as http,
    ):
        for seed, job in enumerate(jobs):
            wait_for(http, job)
            plain = http.post(ROUTE, json=body(seed)).json()["data"][0]["b64_json"]
            assert http.get(f"{JOBS}/{job}/content").content == base64.b64decode(plain)
        assert len(http.get(JOBS, params={"limit": 100}).json()["data"]) == NUM_JOBS
