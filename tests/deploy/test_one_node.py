"""Runs deploy/serve/one-node.yaml: Ray Serve's own command, our application, an image over HTTP."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from PIL import Image

from tests.deploy.manifests import DEPLOY
from tests.live import READY_SECONDS, STOP_SECONDS, free_port

CONFIG = DEPLOY / "serve" / "one-node.yaml"
SERVE = Path(sys.executable).with_name("serve")
REQUEST = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 2}


def small_and_local(config: dict[str, Any], port: int) -> dict[str, Any]:
    """The config with the test model, on a free port of this machine."""
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] |= {"model": "tiny", "denoise_threads": 1}
    return config


@contextmanager
def running(config: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on a Ray of its own, never on one that already runs, until the block ends."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name == "RAY_USAGE_STATS_ENABLED"
    }
    with (folder / "serve.log").open("wb") as log:
        command = [str(SERVE), "run", "--address", "local", str(config)]
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(http: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        log_end = log.read_text(errors="replace")[-4000:]
        assert process.poll() is None and time.monotonic() < until, log_end
        time.sleep(0.5)


def test_the_config_for_one_machine_draws_an_image_and_stops(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "one-node.yaml"
    config.write_text(
        yaml.safe_dump(small_and_local(yaml.safe_load(CONFIG.read_text(encoding="utf-8")), port))
    )
    with (
        running(config, tmp_path) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        wait_until_ready(http, process, tmp_path / "serve.log")
        first, second = (http.post("/v1/images/generations", json=REQUEST) for _ in range(2))
        assert first.status_code == 200, first.text
        image = base64.b64decode(first.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(image)).format == "PNG"
        assert second.json()["data"] == first.json()["data"]
        assert http.get("/-/healthz").status_code == 200
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]
    assert process.returncode == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{port}/livez")
