"""The tool `generate_image`, called by the SDK's own client over HTTP, and who may call it."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.errors import QueueFull, UntrustedHost
from safelight.service.http import mcp_route
from safelight.service.http.gateway import build_gateway
from safelight.service.http.trusted_hosts import TrustedHosts
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import ImageFormat
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend, fake_image, make_params
from tests.service.http_server import served
from tests.service.inprocess_backend import InProcessBackend


@pytest.fixture
def url(backend: FakeBackend) -> Iterator[str]:
    with served(build_gateway(backend, MODEL, Settings())) as url:
        while not backend.drawn:  # the warm-up image
            httpx2.get(f"{url}/livez")
        yield url
        backend.gate.set()


async def call(url: str, arguments: dict[str, Any], **options: Any) -> CallToolResult:
    async with Client(f"{url}/mcp", **options) as client:
        return await client.call_tool("generate_image", arguments)


def text_of(result: CallToolResult) -> str:
    content = result.content[-1]
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_sdks_client_lists_the_tool_and_draws(url: str, backend: FakeBackend, mode: Any) -> None:
    """By the protocol of 2026 and by the one before."""
    reports: list[tuple[float, float | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total))

    async with Client(f"{url}/mcp", mode=mode) as client:
        (tool,) = (await client.list_tools()).tools
        fields = {"prompt": "a blorp", "seed": 7, "n": 2, "size": "16x8", "output_format": "webp"}
        result = await client.call_tool(tool.name, fields, progress_callback=on_progress)
    assert not result.is_error
    images = [content for content in result.content if isinstance(content, ImageContent)]
    params = make_params(prompt="a blorp", seed=7, width=16)
    assert base64.b64decode(images[0].data) == fake_image(params, ImageFormat("webp", 100))
    assert [image.mime_type for image in images] == ["image/webp"] * 2
    assert "16x8 pixels, seed 7" in text_of(result) and "blorp" in text_of(result)
    assert result.structured_content is not None and result.structured_content["nfe"] == 10
    assert reports[-1] == (1.0, 1.0)
    assert sorted(set(reports)) == reports  # each further than the one before


async def test_the_tool_says_what_the_model_allows(url: str) -> None:
    async with Client(f"{url}/mcp") as client:
        (tool,) = (await client.list_tools()).tools
    schema = tool.input_schema
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["size"]["enum"] == ["auto", "8x8", "16x8"]
    assert MODEL.id in (tool.description or "")


async def test_a_fault_is_a_sentence_for_the_agent(url: str, backend: FakeBackend) -> None:
    result = await call(url, {"prompt": "p", "num_inference_steps": 1000})
    assert result.is_error and "num_inference_steps" in text_of(result)
    backend.errors = [QueueFull()]
    result = await call(url, {"prompt": "p"})
    assert result.is_error and "Too many images are waiting" in text_of(result)


@pytest.mark.parametrize("fields", [{"response_format": "url"}, {"stream": True}])
async def test_images_are_answered_in_no_other_way(
    url: str, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    num_drawn = len(backend.drawn)
    result = await call(url, {"prompt": "p"} | fields)
    assert result.is_error and "the tool returns the images" in text_of(result)
    assert len(backend.drawn) == num_drawn


async def test_a_strict_service_refuses_unknown_fields(backend: FakeBackend) -> None:
    with served(build_gateway(backend, MODEL, Settings(strict=True))) as url:
        result = await call(url, {"prompt": "p", "colour": "red"})
    assert result.is_error and "colour is not a field" in text_of(result)


async def test_calls_are_recorded_as_all_other_requests(url: str, backend: FakeBackend) -> None:
    assert not (await call(url, {"prompt": "p", "n": 2})).is_error
    assert (await call(url, {"prompt": ""})).is_error
    backend.errors = [QueueFull()]
    assert (await call(url, {"prompt": "p"})).is_error
    report = httpx2.get(f"{url}/v1/accounting?latest=3").json()
    assert report["requests"] == {"done": 1, "refused": 2, "aborted": 0, "failed": 0}
    assert [request["code"] for request in report["latest"]] == ["queue_full", "invalid_value", "ok"]
    assert report["images"] == 2


async def test_a_caller_that_goes_away_takes_its_images_along(url: str, backend: FakeBackend) -> None:
    backend.gate.clear()
    calls = len(backend.calls)
    task = asyncio.ensure_future(call(url, {"prompt": "p"}))
    while len(backend.calls) == calls:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    while not backend.num_cancelled:
        await asyncio.sleep(0.01)
    while not (report := httpx2.get(f"{url}/v1/accounting").json())["requests"]["aborted"]:
        await asyncio.sleep(0.01)
    assert report["requests"]["failed"] == 0


async def test_another_tool_is_an_error(url: str) -> None:
    async with Client(f"{url}/mcp") as client:
        with pytest.raises(Exception, match="only generate_image"):
            await client.call_tool("draw", {})


PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"host": "here", "origin": "http://here"}, None),
        ({"host": "evil.example.org"}, "untrusted_host"),
        ({"origin": "http://localhost:3000"}, "cross_site_request"),
        ({"host": "127.0.0.1", "origin": "https://evil.example.org"}, "cross_site_request"),
        ({"origin": "null"}, "cross_site_request"),
    ],
)
def test_pages_of_other_hosts_are_refused(url: str, headers: dict[str, str], code: str | None) -> None:
    accept = {"accept": "application/json, text/event-stream"}
    response = httpx2.post(f"{url}/mcp", json=PING, headers=accept | headers)
    assert response.status_code == (403 if code else 200)
    if code:
        assert response.json()["error"]["code"] == code


def test_also_where_others_reach_the_service_a_host_must_be_known(backend: FakeBackend) -> None:
    settings = Settings(host="0.0.0.0", require_api_keys="never")
    client = TestClient(build_gateway(backend, MODEL, settings))
    answer = client.post("/mcp", json=PING, headers={"host": "evil.example.org"})
    assert answer.json()["error"]["code"] == "untrusted_host"


def test_only_post_is_answered(url: str) -> None:
    for method in ("GET", "DELETE"):
        response = httpx2.request(method, f"{url}/mcp")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_body_has_a_limit(url: str) -> None:
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    body = json.dumps(PING | {"params": {"x": "x" * (1 << 20)}})
    assert httpx2.post(f"{url}/mcp", content=body, headers=headers).status_code == 413


def host_request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/mcp", "headers": raw})


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8000",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]:8000",
        "safelight:8000",
        "box.local",
        "a.b.svc",
        "a.b.svc.cluster.local",
        "images.example.org",
        "Images.Example.org.:443",
    ],
)
def test_trusted_hosts(host: str) -> None:
    hosts = TrustedHosts(Settings(public_url="https://images.example.org"))
    hosts.check_host(host_request(host=host))


@pytest.mark.parametrize(
    "host",
    ["", "example.org", "a.images.example.org", "127.0.0.1.example.org", "local.example", "[::1"],
)
def test_hosts_that_are_not_trusted(host: str) -> None:
    hosts = TrustedHosts(Settings(public_url="https://images.example.org"))
    with pytest.raises(UntrustedHost):
        hosts.check_host(host_request(host=host))


def test_without_the_library_there_is_no_route(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_route, "find_spec", lambda name: None)
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert client.post("/mcp", json=PING).status_code == 404
        assert client.get("/livez").status_code == 200


async def test_a_real_image_is_content() -> None:
    """The smallest network, in this process."""
    model = find_model("tiny")
    pipeline = InProcessPipeline(model, Settings(model="tiny"))
    pipeline.wait()
    try:
        with served(build_gateway(InProcessBackend(pipeline), model, Settings(model="tiny"))) as url:
            result = await call(url, {"prompt": "a red apple", "num_inference_steps": 2})
    finally:
        pipeline.close()
    content = result.content[0]
    assert isinstance(content, ImageContent)
    assert Image.open(io.BytesIO(base64.b64decode(content.data))).size == model.native_size
