"""Parts of a load test that run as commands: `safelight bench` before it, and locust's users after it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.service import CannotStart

BENCH_REQUESTS = 120
LAST_ANSWERS_S = 120  # how long locust waits for requests under way when its time is over


def bench_engine(model: str, folder: Path) -> float:
    """Throughput in images an hour of the engine alone, saturated by the same mix. Takes about a minute.

    Writes `bench.json` into `folder`. Raises `CannotStart` if the command fails.
    """
    print("measuring the engine alone, without HTTP: about a minute")
    safelight = str(Path(sys.executable).with_name("safelight"))
    command = [safelight, "bench", "--engine-only", "--json", "--model", model, "--rounds", "1"]
    done = subprocess.run(
        [*command, "--requests", str(BENCH_REQUESTS)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise CannotStart(f"safelight bench ended with status {done.returncode}")
    (folder / "bench.json").write_text(done.stdout)
    return float(json.loads(done.stdout)["figures"]["mixed"]["ours"]["images_per_hour"])


def run_spike(url: str, seconds: float, folder: Path, sizes: Sequence[str]) -> bool:
    """Run locust with a spike of users, who repeat their requests. False if any answer was wrong.

    Writes `locust.html`, `locust.json` and `locust.log` into `folder`.
    """
    locust = str(Path(sys.executable).with_name("locust"))
    users = str(Path(__file__).with_name("users.py"))
    command = [locust, "-f", users, "--headless", "--host", url, "--only-summary"]
    command += ["--stop-timeout", str(LAST_ANSWERS_S)]
    command += ["--html", str(folder / "locust.html"), "--json-file", str(folder / "locust")]
    environment = os.environ | {"SHAPE": "spike", "SECONDS": str(seconds), "SIZES": ",".join(sizes)}
    print(f"spike: locust's users for {seconds:.0f} s")
    with (folder / "locust.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    return done.returncode == 0
