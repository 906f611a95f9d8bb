"""`python -m loadtests` as a user runs it, against the shared live service: report, sums, exit status."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests.traces import ScheduledRequest, write_trace
from tests.live import LiveService, free_port

ROOT = Path(__file__).resolve().parents[2]
# Nothing but wrong answers and wrong sums can fail: the machine may be busy.
NO_TARGETS = (
    *("--min-images-per-hour", "1", "--max-p95", "1e6", "--max-p95-times-alone", "1e6"),
    *("--max-account-difference", "1e6"),
)
BODY = {"prompt": "a red apple", "num_inference_steps": 2, "guidance_scale": 1.0, "seed": 1}


def loadtests(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests", "--output", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def total(target: dict[str, Any]) -> tuple[float, float]:
    """What the service counted, and what the clients did, as the report says it."""
    (by_service,) = re.findall(r"^([\d.e+]+) \(", target["got"])
    (by_clients,) = re.findall(r"of ([\d.e+]+)$", target["wanted"])
    return float(by_service), float(by_clients)


def test_all_phases_run_and_the_sums_agree(live_service: LiveService, tmp_path: Path) -> None:
    load = ("--one-by-one", "2", "--burst", "3", "--seconds", "6")
    done = loadtests("--url", live_service.url, *load, *NO_TARGETS, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(tmp_path)
    phases = {phase["name"]: phase for phase in report["phases"]}
    assert list(phases) == ["one by one", "burst", "saturated", "at 60%"]
    assert (phases["one by one"]["requests"], phases["burst"]["requests"]) == (2, 3)
    assert all(phase["faults"] == {} and phase["p95_s"] > 0.0 for phase in phases.values())
    assert report["facts"]["locust's spike"] == "passed"
    targets = {target["name"].partition("clients: ")[2]: target for target in report["targets"]}
    num_images = sum(phase["requests"] for phase in phases.values())
    assert total(targets["images"]) == (num_images, num_images)
    for name in ("network evaluations", "device-seconds"):
        by_service, by_clients = total(targets[name])
        assert by_service == by_clients > 0.0, name
    assert all(target["is_met"] is True for target in report["targets"])
    locust = json.loads((tmp_path / "locust.json").read_text(encoding="utf-8"))
    assert sum(row["num_requests"] for row in locust) > 0
    assert sum(row["num_failures"] for row in locust) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{name}.png" for name in ("latency", "throughput", "rows-a-tick", "utilisation")
    }


def test_a_missed_target_is_the_exit_status(live_service: LiveService, tmp_path: Path) -> None:
    """Replayed from a trace, with one request that the service refuses."""
    trace = tmp_path / "trace"
    write_trace(trace, [ScheduledRequest(0.0, BODY), ScheduledRequest(0.1, BODY | {"solver": "none"})])
    done = loadtests("--url", live_service.url, "--trace", str(trace), *NO_TARGETS, folder=tmp_path / "run")
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(tmp_path / "run")
    (phase,) = report["phases"]
    assert (phase["name"], phase["requests"], phase["faults"]) == ("recorded", 2, {"invalid_value": 1})
    (missed,) = (target for target in report["targets"] if not target["is_met"])
    assert (missed["name"], missed["got"]) == ("failures and refusals", "1")
    assert re.search(r"failures and refusals +at most 0 +1 +no", done.stdout)


def test_nothing_measured_is_another_exit_status(tmp_path: Path) -> None:
    done = loadtests("--url", f"http://127.0.0.1:{free_port()}", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("loadtests: ")
