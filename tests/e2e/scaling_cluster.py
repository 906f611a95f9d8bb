"""A Ray cluster of several nodes on this machine under a load that comes and goes; a node dies meanwhile. Writes what it saw as JSON.

A program of its own, because Ray's nodes and drivers leave their traces in a process. Run by `test_autoscaling.py`.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from safelight.service.local import ENVIRONMENT, wait_until_ready

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
warnings.simplefilter("ignore")

import httpx  # noqa: E402
import psutil  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.util.state import list_actors  # noqa: E402

from safelight.service.app import build_app  # noqa: E402
from safelight.service.settings import Settings  # noqa: E402

MOST = 3
STEPS = 150
ROUTE = "/v1/images/generations"
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


async def main(port: int) -> dict[str, object]:
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 1}, shutdown_at_exit=True)
    ray.init(address=cluster.address, log_to_driver=False)
    settings = Settings(
        model="tiny", port=port, denoise_replicas=f"1-{MOST}", denoise_threads=1, target_seconds=1.0,
        upscale_delay_seconds=1.0, downscale_delay_seconds=6.0, max_rows=4,
    )  # fmt: skip
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")
    serve.run(build_app(settings), name="safelight")
    url = f"http://127.0.0.1:{port}"
    await asyncio.to_thread(wait_until_ready, url)
    filling = ray.remote(num_cpus=0.5)(
        Nothing
    ).remote()  # so that the denoisers which come later go to other nodes than the head
    await filling.__ray_ready__.remote()
    workers = [cluster.add_node(**NODE) for _ in range(2)]
    seen: dict[str, object] = {"at_rest": len(denoisers())}
    answers = Counter[str]()
    async with httpx.AsyncClient(
        base_url=url, timeout=200, limits=httpx.Limits(max_connections=None)
    ) as client:
        loading = asyncio.ensure_future(load(client, answers, users=48, seconds=40.0))
        seen["loaded"] = await until(lambda: len(denoisers()) == MOST, 60)
        before = await asyncio.to_thread(denoisers)
        victim = next(worker for worker in workers if worker.node_id in before.values())
        await asyncio.to_thread(lose_power, cluster, victim)
        lost = {actor for actor, node in before.items() if node == victim.node_id}
        seen["lost"] = len(lost)
        seen["after_the_node"] = await until(lambda: len(denoisers().keys() - lost) == MOST, 60)
        await loading
        few = asyncio.ensure_future(
            load(client, answers, users=1, seconds=25.0)
        )  # somebody still asks while replicas go
        seen["unloaded"] = await until(lambda: len(denoisers()) == 1, 60)
        await few
        await asyncio.sleep(2.0)  # the last charges are on their way
        accounting = (await client.get("/v1/accounting")).json()
    seen |= {
        "answers": answers,
        "requests": accounting["requests"],
        "balance": accounting["balance"]["stages"]["denoise"],
    }
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
    return seen


async def load(client: httpx.AsyncClient, answers: Counter[str], users: int, seconds: float) -> None:
    """Users who ask for one image after the other, the same for all; counts the images' digests, or what came instead."""
    ends = time.monotonic() + seconds

    async def use() -> None:
        while time.monotonic() < ends:
            answer = await client.post(ROUTE, json={"prompt": "a", "seed": 1, "num_inference_steps": STEPS})
            is_good = answer.status_code == 200
            answers[
                hashlib.sha256(answer.json()["data"][0]["b64_json"].encode()).hexdigest()
                if is_good
                else answer.text[:300]
            ] += 1

    await asyncio.gather(*(use() for _ in range(users)))


async def until(holds: Callable[[], bool], seconds: float) -> int:
    """The number of denoisers once `holds`, or after so long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not await asyncio.to_thread(holds):
        await asyncio.sleep(0.5)
    return len(await asyncio.to_thread(denoisers))


def denoisers() -> dict[str, str]:
    """The node of each denoiser that is alive, by its actor."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return {
        actor.actor_id: actor.node_id for actor in actors if "Denoiser" in (actor.name or actor.class_name)
    }


class Nothing:
    """An actor that only takes room."""


def lose_power(cluster: Cluster, node: Any) -> None:
    """End a node's every process at once, as when its machine stops."""
    [raylet] = node.all_processes["raylet"]
    for process in [
        psutil.Process(raylet.process.pid),
        *psutil.Process(raylet.process.pid).children(recursive=True),
    ]:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1])))) + "\n")
