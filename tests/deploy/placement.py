"""Shows on which nodes Ray places the replicas of a Serve config, with fake nodes and the tiny model.

`python -m tests.deploy.placement CONFIG PORT NODES`; NODES is a JSON list of what each worker offers.
Ray only counts GPUs, so they need not exist.
Prints JSON: the nodes' numbers by deployment, and the status of an image drawn over HTTP.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

STORE_BYTES = 80 << 20
SECONDS = 150.0


def main(config: Path, port: int, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    numbers = {
        cluster.add_node(object_store_memory=STORE_BYTES, **node).node_id: number
        for number, node in enumerate(nodes)
    }
    try:
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        return deploy_and_draw(config, port, numbers)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def deploy_and_draw(config: Path, port: int, numbers: dict[str, int]) -> dict[str, Any]:
    """Deploy the config, draw an image, and report its status and the replicas' nodes by their `numbers`."""
    import httpx2
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(config.read_text(encoding="utf-8")))
    # the nodes share one address, so that only one of them can have a proxy
    client = serve_start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    client.deploy_apps(schema, _blocking=False)
    until = time.monotonic() + SECONDS
    while (
        status := serve.status().applications["safelight"]
    ).status == "DEPLOYING" and time.monotonic() < until:
        time.sleep(0.5)
    image = httpx2.post(
        f"http://127.0.0.1:{port}/v1/images/generations",
        json={"prompt": "a red apple", "num_inference_steps": 2},
        timeout=60,
    )
    deployments = client.get_serve_details()["applications"]["safelight"]["deployments"]
    return {
        "status": status.status,
        "nodes": {
            name: sorted(numbers.get(replica.get("node_id"), -1) for replica in deployment["replicas"])
            for name, deployment in deployments.items()
        },
        "image": image.status_code,
    }


if __name__ == "__main__":
    stdout, sys.stdout = sys.stdout, sys.stderr  # Ray prints to stdout too
    answer = main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
    stdout.write(json.dumps(answer))
    stdout.flush()
    os._exit(0)  # Ray is shut down; do not wait for its threads
