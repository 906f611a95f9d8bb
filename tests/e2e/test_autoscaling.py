"""Autoscaling on a cluster of several nodes: replicas follow the load, and no request is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(420)
def test_replicas_scale_and_a_node_dies_without_a_lost_request() -> None:
    command = [sys.executable, "-m", "tests.e2e.scaling_cluster", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    observed = json.loads(done.stdout.splitlines()[-1])
    assert (observed["at_rest"], observed["loaded"], observed["unloaded"]) == (1, 3, 1)
    assert observed["lost"] >= 1 and observed["after_the_node"] == 3
    [(image, number)] = observed["answers"].items()  # every answer is an image, and all are the same one
    assert len(image) == 64 and number >= 48
    assert observed["requests"] == {"done": number, "refused": 0, "aborted": 0, "failed": 0}
    balance = observed["balance"]
    assert balance["busy"] == pytest.approx(
        sum(seconds for name, seconds in balance.items() if name != "busy")
    )
    assert balance["requests"] > 0.5 * balance["busy"]
    # Its model is so small that choosing the samples of a tick is a large part of the tick.
    assert 0 <= balance["overhead"] < 0.15 * balance["busy"]
