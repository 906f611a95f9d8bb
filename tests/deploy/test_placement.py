"""The Serve configs of clusters on fake nodes: every replica is placed, and on the intended node."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, DOCKERFILES, ROOT
from tests.live import free_port

SECONDS = 240.0
PACK = {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1"}
GATEWAY: dict[str, Any] = {"num_cpus": 2, "resources": {"gateway": 1}}
GPU: dict[str, Any] = {"num_cpus": 8, "num_gpus": 1}


def placed(tmp_path: Path, name: str, nodes: list[dict[str, Any]], **args: str) -> dict[str, Any]:
    """The nodes on which the replicas of a config are placed, if it is run with other `args`."""
    config = yaml.safe_load((DEPLOY / "serve" / f"{name}.yaml").read_text(encoding="utf-8"))
    config["applications"][0]["args"] |= {"model": "tiny"} | args
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    environ = (
        {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        | PACK
        | {"RAY_USAGE_STATS_ENABLED": "0"}
    )
    command = [sys.executable, "-m", "tests.deploy.placement", str(file), str(free_port()), json.dumps(nodes)]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            answer, _ = process.communicate(timeout=SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    placement: dict[str, Any] = json.loads(answer)
    return placement


def test_the_images_make_serve_pack() -> None:
    """Serve would spread replicas over all nodes: an encoder on each GPU leaves none for a denoiser."""
    for dockerfile in DOCKERFILES:
        for name, value in PACK.items():
            assert f"{name}={value}" in dockerfile.read_text(encoding="utf-8")


@pytest.mark.long
def test_encoders_and_decoders_share_a_gpu_and_denoisers_have_their_own(tmp_path: Path) -> None:
    """With as many encoders and decoders as allowed, no more GPUs are used than needed."""
    nodes = [GATEWAY, GATEWAY, GPU, GPU, GPU]
    placement = placed(
        tmp_path, "many-gpus", nodes, encode_replicas="2", denoise_replicas="2", decode_replicas="2"
    )
    assert placement["status"] == "RUNNING" and placement["image"] == 200, placement
    nodes_of = placement["nodes"]
    assert nodes_of["Gateway"] == [0, 1]
    assert len(set(nodes_of["Denoiser"])) == 2 and set(nodes_of["Denoiser"]) < {2, 3, 4}
    assert (
        set(nodes_of["TextEncoder"]) == set(nodes_of["VaeDecoder"]) == {2, 3, 4} - set(nodes_of["Denoiser"])
    )
    assert len(nodes_of["TextEncoder"]) == len(nodes_of["VaeDecoder"]) == 2


@pytest.mark.long
def test_denoisers_and_gateways_of_a_cluster_without_gpus_are_on_different_nodes(tmp_path: Path) -> None:
    placement = placed(tmp_path, "many-cpus", [{"num_cpus": 4}, {"num_cpus": 4}], denoise_replicas="2")
    assert placement["status"] == "RUNNING" and placement["image"] == 200, placement
    assert placement["nodes"]["Denoiser"] == placement["nodes"]["Gateway"] == [0, 1]


@pytest.mark.long
def test_all_stages_fit_one_gpu(tmp_path: Path) -> None:
    placement = placed(tmp_path, "one-gpu", [GPU])
    assert placement["status"] == "RUNNING" and placement["image"] == 200, placement
    assert {stage for stage, nodes in placement["nodes"].items() if nodes == [0]} >= {
        "TextEncoder",
        "Denoiser",
        "VaeDecoder",
    }
