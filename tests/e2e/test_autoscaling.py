"""Replicas come with work and go without it, on a cluster of several nodes, and no request is lost on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(420)
def test_replicas_come_and_go_and_a_node_dies_and_nobody_notices() -> None:
    command = [sys.executable, "-m", "tests.e2e.scaling_cluster", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["at_rest"], seen["loaded"], seen["unloaded"]) == (1, 3, 1)
    assert seen["lost"] >= 1 and seen["after_the_node"] == 3
    [(image, number)] = seen["answers"].items()  # every answer is an image, and all are the same one
    assert len(image) == 64 and number >= 48
    assert seen["requests"] == {"done": number, "refused": 0, "aborted": 0, "failed": 0}
    balance = seen["balance"]
    assert balance["busy"] == pytest.approx(
        sum(seconds for name, seconds in balance.items() if name != "busy")
    )
    assert balance["requests"] > 0.5 * balance["busy"]
    assert 0 <= balance["overhead"] < 0.1 * balance["busy"]
