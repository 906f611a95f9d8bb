"""Measures what one unit of work costs the gateway, the ledger and Ray Serve's controller.

    python -m tests.bench.control_plane [--json]

Takes about three minutes. A service of `tiny` runs in this process's Ray. A process's cost is its processor
time, so other work on the machine matters little. `safelight simulate` assumes such costs
(`pipeline/capacity/fleet/control_plane.py`).
"""

import argparse
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import psutil

from safelight.pipeline.benchmark.machine import identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.params import UsageAmounts
from safelight.service.local import APPLICATION, running_service
from safelight.service.messages import StageStatus
from safelight.service.runtime.environment import service_environment
from safelight.service.settings import Settings
from safelight.service.usage.events import StageReport, StageTotals, UsageEvent

NUM_REQUESTS = 200
NUM_REPORTS = 300
EVENTS = (0, 1000)  # of a report
REPLICAS = (2, 8, 16)
SECONDS = 20.0  # over which the controller's processor time is taken
GATEWAY, LEDGER = "ServeReplica:safelight:Gateway", "ServeReplica:safelight:Ledger"
CONTROLLER = "ServeController"
BODY = {"prompt": "a red apple", "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 1}


class ReportingReplica:
    """A replica without work that reports its load, as a stage's replica does."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"work_left": 0.0, "offered": 0.0, "seconds_a_job": 0.0}

    def __call__(self) -> None:
        pass


def main() -> int:
    """Print the processor seconds of each unit of work, or with `--json` their record for docs/data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, for docs/data")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(model="tiny", host="127.0.0.1", port=port)
    with service_environment(), running_service(settings, _report) as url:
        figures = {"gateway_request": request_cost(url)} | ledger_costs()
        figures |= {"controller_replica": replica_cost()}
    if args.json:
        command = "python -m tests.bench.control_plane"
        print(json.dumps(benchmark_record(identify_machine(), command, figures), indent=1))
    else:
        print("\n".join(f"{name}: {1e3 * seconds:.3g} ms" for name, seconds in figures.items()))
    return 0


def _report(text: str) -> None:
    print(text, file=sys.stderr)


def request_cost(url: str) -> float:
    """Processor seconds of a gateway for one request of one image, without what it takes idle.

    In a cluster Serve's proxy comes on top, which `safelight serve` does without.
    """
    with httpx2.Client(base_url=url, timeout=60.0) as client:

        def send(count: int) -> None:
            for _ in range(count):
                client.post("/v1/images/generations", json=BODY).raise_for_status()

        send(20)  # warms up
        idle = _rate((GATEWAY,), lambda: time.sleep(SECONDS / 2))
        started = time.perf_counter()
        used = _used((GATEWAY,), partial(send, NUM_REQUESTS))
        seconds = time.perf_counter() - started
    return (used - idle * seconds) / NUM_REQUESTS


def ledger_costs() -> dict[str, float]:
    """Processor seconds of the ledger for a report, and for an event in one."""
    from ray import serve

    ledger = serve.get_deployment_handle("Ledger", APPLICATION)
    report = StageReport("bench", 0, "denoise", (), StageTotals(), StageStatus(), process=0, thread=0)
    number = 0

    def send(events: int) -> None:
        nonlocal number
        for _ in range(NUM_REPORTS):
            usage = tuple(UsageEvent(f"{number}-{k}", UsageAmounts()) for k in range(events))
            ledger.receive.remote(replace(report, number=number, events=usage)).result()
            number += 1

    send(0)  # warms up
    idle = _rate((LEDGER,), lambda: time.sleep(SECONDS / 2))
    costs = []
    for events in EVENTS:
        started = time.perf_counter()
        used = _used((LEDGER,), partial(send, events))
        costs.append((used - idle * (time.perf_counter() - started)) / NUM_REPORTS)
    return {"ledger_report": costs[0], "ledger_event": (costs[1] - costs[0]) / (EVENTS[1] - EVENTS[0])}


def replica_cost() -> float:
    """Processor seconds of the controller for a second of an autoscaled replica: the slope over replicas."""
    rates = [_controller_rate(count) for count in REPLICAS]
    for count, rate in zip(REPLICAS, rates, strict=True):
        sys.stderr.write(f"controller with {count} more replicas: {rate:.1%} of a core\n")
    return statistics.linear_regression(REPLICAS, rates).slope


def _controller_rate(count: int) -> float:
    from ray import serve

    scaling = {
        "min_replicas": count, "max_replicas": count, "metrics_interval_s": 1.0, "look_back_period_s": 3.0,
        "policy": {
            "policy_function": "safelight.service.ray_serve.autoscaling:ByWork",
            "policy_kwargs": {"target_seconds": 1.0},
        },
    }  # fmt: skip
    deployment = serve.deployment(
        autoscaling_config=scaling, ray_actor_options={"num_cpus": 0}, health_check_period_s=2.0
    )(ReportingReplica)
    serve.run(deployment.bind(), name="replicas", route_prefix="/replicas")
    time.sleep(SECONDS / 4)  # until their starts are over
    rate = _rate((CONTROLLER,), lambda: time.sleep(SECONDS))
    serve.delete("replicas")
    return rate


def _used(names: tuple[str, ...], work: Callable[[], Any]) -> float:
    """Processor seconds that the processes of these names take while `work` runs."""
    before = _processor_seconds(names)
    work()
    return _processor_seconds(names) - before


def _rate(names: tuple[str, ...], work: Callable[[], Any]) -> float:
    """The same, for each second of `work`."""
    started = time.perf_counter()
    used = _used(names, work)
    return used / (time.perf_counter() - started)


def _processor_seconds(names: tuple[str, ...]) -> float:
    """Of the processes of this process's Ray whose titles hold one of `names`."""
    processes = [
        process
        for process in psutil.Process().children(recursive=True)
        if any(name in " ".join(process.cmdline()) for name in names)
    ]
    titles = " ".join(" ".join(process.cmdline()) for process in processes)
    if missing := [name for name in names if name not in titles]:
        raise SystemExit(f"no process of {', '.join(missing)} runs")
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
