"""Runs a Ray cluster of several nodes on this machine under a load that rises and falls, and kills a node.

Prints its observations as JSON. `test_autoscaling.py` runs it.
It is a program of its own, because Ray's nodes and drivers leave state behind in a process.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from safelight.service.local import ENVIRONMENT, wait_until_ready

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
warnings.simplefilter("ignore")

import httpx2  # noqa: E402
import psutil  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.util.state import list_actors  # noqa: E402

from safelight.service.app import build_app  # noqa: E402
from safelight.service.runtime.addresses import Address  # noqa: E402
from safelight.service.settings import Settings  # noqa: E402

MAX_DENOISERS = 3
STEPS = 150
ROUTE = "/v1/images/generations"
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 << 20}


async def main(port: int) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}"
    with running_cluster(port) as cluster:
        await asyncio.to_thread(wait_until_ready, Address("127.0.0.1", port))
        # Fills the head node, so that further denoisers go to other nodes.
        placeholder: Any = ray.remote(num_cpus=0.5)(Placeholder).remote()
        await placeholder.__ray_ready__.remote()
        workers = [cluster.add_node(**NODE) for _ in range(2)]
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=200, limits=limits) as client:
            return await observe(client, cluster, workers)


@contextmanager
def running_cluster(port: int) -> Iterator[Cluster]:
    """A cluster with a head node and the application, whose denoiser scales from 1 to `MAX_DENOISERS`."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 1}, shutdown_at_exit=True)
    ray.init(address=cluster.address, log_to_driver=False)
    settings = Settings(
        model="tiny", port=port, denoise_replicas=f"1-{MAX_DENOISERS}", denoise_threads=1, target_seconds=1.0,
        promise_seconds=0.0, upscale_delay_seconds=1.0, downscale_delay_seconds=6.0, max_rows=4,
    )  # fmt: skip
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")
    serve.run(build_app(settings), name="safelight")
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


async def observe(client: httpx2.AsyncClient, cluster: Cluster, workers: list[Any]) -> dict[str, object]:
    """Numbers of denoisers at rest, under load, after a node died, and after the load; and the accounting."""
    observed: dict[str, object] = {"at_rest": len(denoisers())}
    answers = Counter[str]()
    async with under_load(client, answers, users=48):
        observed["loaded"] = await until(lambda: len(denoisers()) == MAX_DENOISERS, 60)
        before = await asyncio.to_thread(denoisers)
        victim = next(worker for worker in workers if worker.node_id in before.values())
        await asyncio.to_thread(kill_node, cluster, victim)
        lost = {actor for actor, node in before.items() if node == victim.node_id}
        observed["lost"] = len(lost)
        observed["after_the_node"] = await until(lambda: len(denoisers().keys() - lost) == MAX_DENOISERS, 60)
    # One user goes on while replicas are removed.
    async with under_load(client, answers, users=1):
        observed["unloaded"] = await until(lambda: len(denoisers()) == 1, 60)
    await asyncio.sleep(2.0)  # the last usage events are on their way
    accounting = (await client.get("/v1/accounting")).json()
    return observed | {
        "answers": answers,
        "requests": accounting["requests"],
        "balance": accounting["balance"]["stages"]["denoise"],
    }


@asynccontextmanager
async def under_load(client: httpx2.AsyncClient, answers: Counter[str], users: int) -> AsyncIterator[None]:
    """Users who request the same image again and again, until the block ends and all are answered.

    Counts answers by image digest, or by error.
    """
    is_over = asyncio.Event()

    async def use() -> None:
        while not is_over.is_set():
            answer = await client.post(ROUTE, json={"prompt": "a", "seed": 1, "num_inference_steps": STEPS})
            if answer.status_code == 200:
                image = answer.json()["data"][0]["b64_json"]
                answers[hashlib.sha256(image.encode()).hexdigest()] += 1
            else:
                answers[answer.text[:300]] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(use())
        try:
            yield
        finally:
            is_over.set()


async def until(holds: Callable[[], bool], seconds: float) -> int:
    """The number of denoisers once `holds()` is true, or after `seconds`."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not await asyncio.to_thread(holds):
        await asyncio.sleep(0.5)
    return len(await asyncio.to_thread(denoisers))


def denoisers() -> dict[str, str]:
    """The node of each live denoiser, by its actor."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return {
        actor.actor_id: actor.node_id or ""
        for actor in actors
        if "Denoiser" in (actor.name or actor.class_name)
    }


class Placeholder:
    """An actor that only occupies CPUs."""


def kill_node(cluster: Cluster, node: Any) -> None:
    """Kill all processes of a node at once, as when its machine loses power."""
    [raylet] = node.all_processes["raylet"]
    parent = psutil.Process(raylet.process.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1])))) + "\n")
