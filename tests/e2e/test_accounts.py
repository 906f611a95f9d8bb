"""The accounts of a running service: complete with several gateways, and after the death of any part."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live import LiveService, serving

PATIENCE = 180.0  # seconds; the machine may be doing something else
ROUTE = "/v1/images/generations"
Totals = dict[str, float]


class Watch:
    """Scrapes a service; asserts that no counter ever falls."""

    def __init__(self, service: LiveService) -> None:
        self.service = service
        self._highest: Totals = {}

    def draw(self, number: int) -> None:
        """Draw images at the same time, each on a connection of its own."""

        def one(seed: int) -> int:
            body = {"prompt": "a red apple", "num_inference_steps": 2, "seed": seed}
            return httpx2.post(f"{self.service.url}{ROUTE}", json=body, timeout=PATIENCE).status_code

        with ThreadPoolExecutor(number) as pool:
            assert list(pool.map(one, range(number))) == [200] * number

    def metrics(self) -> Totals | None:
        """Counters by name and labels; None while nothing answers or the ledger is away."""
        try:
            answer = httpx2.get(f"{self.service.url}/metrics", timeout=PATIENCE)
        except httpx2.HTTPError:
            return None
        if answer.status_code != 200 or "safelight_ledger_up 1.0" not in answer.text:
            return None
        counters = {
            " ".join((sample.name, *sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if family.type in ("counter", "histogram") or sample.name == "safelight_gateway_replicas"
        }
        for name, value in self._highest.items():
            assert name == "safelight_gateway_replicas" or counters.get(name, -1.0) >= value, name
        self._highest |= counters
        return counters

    def accounting(self) -> dict[str, Any] | None:
        try:
            answer = httpx2.get(f"{self.service.url}/v1/accounting", timeout=PATIENCE)
        except httpx2.HTTPError:
            return None
        report: dict[str, Any] = answer.json()
        return report if answer.status_code == 200 else None

    def agree(self, done: int) -> bool:
        """Whether metrics and accounting have `done` requests that succeeded, and the same sums."""
        report, metrics = self.accounting(), self.metrics()
        if report is None or metrics is None or report["requests"]["done"] != done:
            return False
        requests = sum(
            value for name, value in metrics.items() if name.startswith("safelight_requests_total")
        )
        assert requests == sum(report["requests"].values())
        images = sum(value for name, value in metrics.items() if name.startswith("safelight_images_total"))
        assert images == report["images"] == sum(account["images"] for account in report["accounts"])
        sent = {
            stage: sum(
                value
                for name, value in metrics.items()
                if name.startswith("safelight_image_device_seconds_total") and stage in name.split()
            )
            for stage in ("encode", "denoise", "decode")
        }
        return sent == pytest.approx(report["device_seconds"])  # the stages report within a second


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def replicas(service: LiveService, deployment: str) -> set[int]:
    """Process ids of a deployment's replicas."""
    process_ids = set()
    for child in psutil.Process(service.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # also of one that has ended and was not waited for
            if f"ServeReplica:safelight:{deployment}" in " ".join(child.cmdline()):
                process_ids.add(child.pid)
    return process_ids


def kill(service: LiveService, deployment: str) -> None:
    """Kill one replica of a deployment; returns when another one runs."""
    processes = replicas(service, deployment)
    os.kill(victim := min(processes), signal.SIGKILL)
    wait_until(lambda: len(replicas(service, deployment) - {victim}) == len(processes))


def test_a_ledger_that_is_killed_loses_nothing(live_service: LiveService) -> None:
    watch = Watch(live_service)
    watch.draw(2)
    report = watch.accounting()
    assert report is not None and report["storage"]["database"]
    done = report["requests"]["done"]
    kill(live_service, "Ledger")
    wait_until(lambda: watch.metrics() is not None and watch.accounting() is not None)
    after = watch.accounting()
    assert after is not None and after["requests"] == report["requests"]
    assert after["images"] == report["images"] and after["since"] == report["since"]
    watch.draw(2)
    wait_until(lambda: (now := watch.accounting()) is not None and now["requests"]["done"] == done + 2)
    assert watch.metrics() is not None


@pytest.mark.long
def test_two_gateways_a_kill_of_each_part_and_a_restart_leave_the_sums(tmp_path: Path) -> None:
    env = os.environ | {
        "SAFELIGHT_GATEWAY_REPLICAS": "2",
        "SAFELIGHT_DATABASE": str(tmp_path / "database"),
        "SAFELIGHT_ACCOUNTS_NAME": "shop",
    }
    options = "--model", "tiny", "--stages", "colocated"
    with serving(tmp_path, *options, env=env) as service:
        watch = Watch(service)
        watch.draw(12)
        for _ in range(6):  # whichever gateway answers
            wait_until(lambda: watch.agree(12))
        gateways = "safelight_gateway_replicas"
        wait_until(lambda: (metrics := watch.metrics()) is not None and metrics[gateways] == 2)
        kill(service, "Gateway")
        wait_until(lambda: watch.agree(12))
        wait_until(lambda: httpx2.get(f"{service.url}/readyz", timeout=PATIENCE).status_code == 200)
        watch.draw(4)
        wait_until(lambda: watch.agree(16))
        kill(service, "Ledger")
        watch.draw(4)
        wait_until(lambda: watch.agree(20))
        watch.draw(4)  # and at once the end
    with serving(tmp_path, *options, env=env) as service:
        watch.service = service
        wait_until(lambda: watch.agree(24))
