"""A real service under batches of OpenAI's client: drawn once, also when everything is killed meanwhile."""

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
import pytest
from openai import OpenAI

from tests.live import LiveService, serving

ROUTE: Final = "/v1/images/generations"
PATIENCE = 300.0
NUM_BATCHES, NUM_LINES = 5, 20


def body_of(seed: int) -> dict[str, Any]:
    return {"prompt": "a red apple", "seed": seed, "num_inference_steps": 4}


def create(client: OpenAI, seeds: range) -> str:
    """The id of a new batch, with a line for each seed."""
    lines = [
        {"custom_id": str(seed), "method": "POST", "url": ROUTE, "body": body_of(seed)} for seed in seeds
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ROUTE, completion_window="24h").id


def images_of(client: OpenAI, batch_id: str) -> dict[int, bytes]:
    """The images of a batch that is done, by seed."""
    batch = client.batches.retrieve(batch_id)
    assert batch.output_file_id is not None and batch.error_file_id is None
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    images = {
        int(line["custom_id"]): base64.b64decode(line["response"]["body"]["data"][0]["b64_json"])
        for line in lines
    }
    assert len(images) == len(lines)
    return images


def draw(url: str, seed: int) -> bytes:
    answer = httpx2.post(f"{url}{ROUTE}", json=body_of(seed), timeout=PATIENCE)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def is_done(client: OpenAI, batch_id: str) -> bool:
    status = client.batches.retrieve(batch_id).status
    assert status in ("validating", "in_progress", "finalizing", "completed")
    return status == "completed"


def test_a_batch_through_openais_client(live_service: LiveService) -> None:
    client = OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE)
    batch_id = create(client, range(6))
    assert len(draw(live_service.url, 3)) > 0, "others are drawn meanwhile"
    wait_until(lambda: is_done(client, batch_id))
    images = images_of(client, batch_id)
    assert sorted(images) == list(range(6))
    assert images[3] == draw(live_service.url, 3)


@contextmanager
def killed_service(folder: Path) -> Iterator[LiveService]:
    """A service of which every process is killed when the block ends."""
    with pytest.raises(BrokenPipeError), serving(folder) as service:
        yield service
        for process in reversed(processes_of(service)):
            os.kill(process.pid, signal.SIGKILL)
        service.process.wait(PATIENCE)
        raise BrokenPipeError


def processes_of(service: LiveService) -> list[psutil.Process]:
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.long
def test_batches_survive_a_kill_of_everything(tmp_path: Path) -> None:
    with killed_service(tmp_path) as service:
        client = OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=PATIENCE)
        starts = range(0, NUM_BATCHES * NUM_LINES, NUM_LINES)
        batch_ids = [create(client, range(start, start + NUM_LINES)) for start in starts]

        def num_drawn() -> int:
            counts = [client.batches.retrieve(batch_id).request_counts for batch_id in batch_ids]
            return sum(count.completed for count in counts if count is not None)

        wait_until(lambda: num_drawn() >= NUM_LINES)
        assert num_drawn() < NUM_BATCHES * NUM_LINES
        assert service.process.poll() is None
    with serving(tmp_path) as service:
        client = OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=PATIENCE)
        wait_until(lambda: all(is_done(client, batch_id) for batch_id in batch_ids))
        images: dict[int, bytes] = {}
        for batch_id in batch_ids:
            batch = client.batches.retrieve(batch_id)
            assert batch.request_counts is not None
            assert (batch.request_counts.total, batch.request_counts.completed) == (NUM_LINES, NUM_LINES)
            images |= images_of(client, batch_id)
        assert sorted(images) == list(range(NUM_BATCHES * NUM_LINES))
        for seed in range(0, NUM_BATCHES * NUM_LINES, 7):
            assert images[seed] == draw(service.url, seed)
