"""Streamed images of a real service: OpenAI's client, a client that goes, a replica that dies."""

import base64
import io
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.e2e.test_service import LONG, PATIENCE, ROUTE, draw, in_engine, metric, replica_of, wait_until
from tests.live import LiveService, serving

Event = tuple[str, dict[str, Any]]


@pytest.fixture
def http(live_service: LiveService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live_service.url, timeout=PATIENCE) as client:
        yield client


def stream(http: httpx2.Client, **fields: Any) -> list[Event]:
    """The events of a streamed request: their names and data."""
    names: list[str] = []
    data: list[dict[str, Any]] = []
    with http.stream("POST", ROUTE, json={"prompt": "a red apple", "stream": True, **fields}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                names.append(value)
            elif field == "data":
                data.append(json.loads(value))
    return list(zip(names, data, strict=True))


def images_of(events: list[Event]) -> list[str]:
    """The finished images in the order of the request."""
    images = {data["image_index"]: data["b64_json"] for name, data in events if name.endswith("completed")}
    return [images[index] for index in sorted(images)]


def test_the_openai_client_reads_a_stream(live_service: LiveService, http: httpx2.Client) -> None:
    options = {"seed": 5, "num_inference_steps": 80}
    plain = draw(http, n=2, **options)["data"]
    client = openai.OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    images: dict[int, str] = {}
    partial_indices: list[tuple[int, int]] = []
    with client:
        for event in client.images.generate(
            prompt="a red apple", n=2, stream=True, partial_images=2, extra_body=options
        ):
            index = (event.model_extra or {})["image_index"]
            image = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
            assert f"{image.width}x{image.height}" == event.size
            if event.type == "image_generation.partial_image":
                assert index not in images
                partial_indices.append((index, event.partial_image_index))
            else:
                images[index] = event.b64_json
                cost = (event.usage.model_extra or {})["safelight"]
                assert cost["nfe"] == 80 and 0 <= cost["previews"] <= 2
    assert [images[k] for k in range(2)] == [image["b64_json"] for image in plain]
    assert partial_indices and len(set(partial_indices)) == len(partial_indices)


def test_a_stream_arrives_as_it_is_drawn_and_proxies_must_not_hold_it(http: httpx2.Client) -> None:
    """Its first preview comes while the image is still in the engine."""
    body = {**LONG, "stream": True, "partial_images": 1}
    with http.stream("POST", ROUTE, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        lines = answer.iter_lines()
        assert next(lines) == "event: image_generation.partial_image"
        assert in_engine(http) == 1
        assert "event: image_generation.completed" in list(lines)


def test_a_client_that_leaves_a_stream_frees_the_engine(http: httpx2.Client) -> None:
    wait_until(lambda: in_engine(http) == 0)
    aborted = metric(http, "safelight_requests_total", outcome="aborted")
    body = json.dumps({**LONG, "n": 10, "stream": True, "partial_images": 3}).encode()
    with socket.create_connection((http.base_url.host, http.base_url.port)) as client:
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: in_engine(http) > 0)
    wait_until(lambda: metric(http, "safelight_images_in_flight") == 0)
    wait_until(lambda: in_engine(http) == 0)
    assert metric(http, "safelight_requests_total", outcome="aborted") == aborted + 1


def test_a_stream_goes_on_with_another_replica(live_service: LiveService, http: httpx2.Client) -> None:
    fields = {**LONG, "num_inference_steps": 100, "seed": 3, "partial_images": 3}
    expected = draw(http, **(fields | {"partial_images": 0}))["data"][0]["b64_json"]
    denoiser = replica_of(live_service, "Denoiser").pid
    with ThreadPoolExecutor(1) as pool:
        resent = metric(http, "safelight_images_retried_total")
        events = pool.submit(stream, http, **fields)
        wait_until(lambda: metric(http, "safelight_stage_previews", stage="decode") > 0)
        wait_until(lambda: metric(http, "safelight_stage_images_running", stage="denoise") == 1)
        os.kill(denoiser, signal.SIGKILL)
        assert images_of(events.result()) == [expected]
    indices = [data["partial_image_index"] for name, data in events.result() if "partial" in name]
    assert indices == sorted(set(indices))
    assert metric(http, "safelight_images_retried_total") == resent + 1
    wait_until(lambda: http.get("/readyz").status_code == 200)


@pytest.mark.long
def test_a_colocated_service_streams_the_same_images(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--model", "tiny", "--stages", "colocated") as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE) as http,
    ):
        fields = {"num_inference_steps": 60, "seed": 3, "n": 2}
        events = stream(http, partial_images=2, **fields)
        assert images_of(events) == [image["b64_json"] for image in draw(http, **fields)["data"]]
        assert any("partial" in name for name, _ in events)
