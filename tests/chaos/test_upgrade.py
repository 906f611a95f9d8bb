"""A new version of the application is deployed under load, and no request notices."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.live import STOP_SECONDS, free_port

ROUTE = "/v1/images/generations"
CALLERS = 4
PATIENCE = 240.0
BODIES: list[dict[str, Any]] = [
    {"prompt": "a red apple", "seed": seed, "num_inference_steps": 20 + 20 * seed} for seed in range(CALLERS)
]
STAGES = ("TextEncoder", "Denoiser", "VaeDecoder", "Gateway", "Ledger")


@contextmanager
def upgraded_service(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.upgraded_service", str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            env=os.environ | {"XDG_DATA_HOME": str(folder / "data")},
        )  # fmt: skip
    try:
        yield process, port
        assert process.stdin
        process.stdin.close()
        process.wait(STOP_SECONDS)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.wait()


def wait_for_ready(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout
    for line in process.stdout:
        if line == "ready\n":
            return
    raise AssertionError(log.read_text()[-4000:])


def replicas(process: subprocess.Popen[str]) -> dict[str, set[int]]:
    """The processes of each deployment."""
    family = [
        (child.pid, " ".join(child.cmdline()))
        for child in psutil.Process(process.pid).children(recursive=True)
    ]
    return {stage: {pid for pid, title in family if f":{stage}" in title} for stage in STAGES}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_new_version_under_load_loses_nothing(tmp_path: Path) -> None:
    with (
        upgraded_service(tmp_path) as (process, port),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        wait_for_ready(process, tmp_path / "serve.log")
        expected = [http.post(ROUTE, json=body).json()["data"] for body in BODIES]
        before, is_done = replicas(process), threading.Event()

        def call(number: int) -> int:
            """Draw the same image again and again; returns how often."""
            count = 0
            while not is_done.is_set() or not count:
                answer = http.post(ROUTE, json=BODIES[number])
                assert answer.status_code == 200, answer.text
                assert answer.json()["data"] == expected[number]
                count += 1
            return count

        callers = [pool.submit(call, number) for number in range(CALLERS)]
        try:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            wait_for_ready(process, tmp_path / "serve.log")
        finally:
            is_done.set()
        assert sum(caller.result() for caller in callers) >= CALLERS
        after = replicas(process)
        for stage in STAGES:
            assert after[stage] and not after[stage] & before[stage], stage
