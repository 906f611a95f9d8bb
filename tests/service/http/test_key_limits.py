"""Limits of keys over HTTP: headers, refusals, what is settled when a request has ended, and its records."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.testclient import TestClient

from safelight.pipeline.params import ONLY_CALLER, Share, UsageAmounts
from safelight.service.access import KeyAccess
from safelight.service.errors import StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.keys.api_key import KeyLimits, KeySpec
from safelight.service.quotas.forecast import DeviceSecondsForecast
from safelight.service.settings import Settings
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestRecorder
from safelight.service.usage.report import HOUR, build_report
from tests.fakes import MODEL, USAGE, FakeBackend, make_params
from tests.service.conftest import ROUTE
from tests.service.http.keyed import ADMIN_KEY, Keys, keyed_client, make_keys, make_settings
from tests.service.http.uploads import png
from tests.service.http_server import served

BODY = {"prompt": "p"}
SECONDS = 2.375  # that an image of the fakes takes in all stages
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


def limited(name: str, **limits: Any) -> KeySpec:
    return KeySpec(name, limits=KeyLimits(**limits))


SPECS = (
    limited(
        "all", requests_per_minute=9, images_per_day=7, device_seconds_per_day=100.0, spend_per_month=50.0
    ),
    limited("minute", requests_per_minute=2),
    limited("images", images_per_day=3),
    limited("seconds", device_seconds_per_day=3 * SECONDS + 0.1),
    limited("many", images_per_day=20),
    limited("failing", images_per_day=4, device_seconds_per_day=50.0),
    limited("leaving", images_per_day=4, device_seconds_per_day=50.0),
    limited("agent", images_per_day=2),
    limited("streaming", images_per_day=9, device_seconds_per_day=50.0),
    limited("painter", images_per_day=2),
    KeySpec("models", models=("another",)),
    KeySpec("own model", models=(MODEL.id,)),
    KeySpec("heavy", weight=3.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Keys:
    return make_keys(folder, *SPECS)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(keys: Keys, folder: Path, backend: FakeBackend) -> Iterator[TestClient]:
    with keyed_client(make_settings(folder, price_per_device_hour=HOUR), backend) as client:
        while not backend.drawn:  # the warm-up image
            client.get("/livez")
        learn(client.app.state.gateway.access)  # type: ignore[attr-defined]
        yield client
        backend.gate.set()


def learn(access: KeyAccess) -> None:
    """Let the forecast be what images here take: those of the fakes take the same, however many steps."""
    access._quotas.forecast = DeviceSecondsForecast()
    access.observe(MODEL.id, [make_params()], [USAGE])


def limits_of(response: httpx2.Response) -> dict[str, tuple[float, float]]:
    """The limit and what remains of each resource, by the headers."""
    names = [name.removeprefix("x-ratelimit-limit-") for name in response.headers if "-limit-" in name]
    for name in names:
        assert response.headers[f"x-ratelimit-reset-{name}"].endswith("s")
    return {
        name: (
            float(response.headers[f"x-ratelimit-limit-{name}"]),
            float(response.headers[f"x-ratelimit-remaining-{name}"]),
        )
        for name in names
    }


@pytest.mark.parametrize("body", [BODY, BODY | {"stream": True}])
def test_images_say_whose_they_are(
    client: TestClient, keys: Keys, backend: FakeBackend, body: dict[str, Any]
) -> None:
    """Of the warm-up nobody's, and then the key's id and weight, by which denoisers share their time."""
    assert {context.share for _, _, context in backend.calls} == {ONLY_CALLER}
    assert client.post(ROUTE, json=body, headers=keys.bearer("heavy")).status_code == 200
    assert backend.calls[-1][2].share == Share(keys.keys["heavy"].id, 3.0)


def test_an_answer_says_what_remains(client: TestClient, keys: Keys) -> None:
    first = client.post(ROUTE, json=BODY | {"n": 2}, headers=keys.bearer("all"))
    assert first.status_code == 200
    assert limits_of(first) == {
        "requests": (9, 8),
        "images": (7, 5),
        "device-seconds": (100, pytest.approx(100 - 2 * SECONDS, abs=0.01)),
        "spend": (50, pytest.approx(50 - 2 * SECONDS, abs=0.01)),
    }
    assert limits_of(client.get("/v1/models", headers=keys.bearer("all"))) == {}
    assert limits_of(client.post(ROUTE, json=BODY, headers=keys.bearer("alice"))) == {}


def test_requests_of_a_minute_are_limited_and_recorded(
    client: TestClient, keys: Keys, backend: FakeBackend
) -> None:
    headers = keys.bearer("minute")
    assert client.post(ROUTE, json=BODY, headers=headers).status_code == 200
    assert client.post(ROUTE, content=b"{", headers=headers).status_code == 415  # a refused one counts, too
    num_drawn = len(backend.drawn)
    answer = client.post(ROUTE, json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "requests_per_minute" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60 and "x-should-retry" not in answer.headers
    assert limits_of(answer) == {"requests": (2, 0)}
    assert len(backend.drawn) == num_drawn
    report = client.get("/v1/accounting", headers=ADMIN).json()
    (account,) = (row for row in report["accounts"] if row["key_name"] == "minute")
    assert account["key"] == keys.keys["minute"].id
    assert account["requests"] == {"done": 1, "refused": 2, "aborted": 0, "failed": 0}


def test_images_of_a_day_are_limited_on_every_route(client: TestClient, keys: Keys) -> None:
    headers = keys.bearer("images")
    assert client.post(ROUTE, json=BODY | {"n": 2}, headers=headers).status_code == 200
    answer = client.post(ROUTE, json=BODY | {"n": 2}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert "2 of 3 used" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert limits_of(answer) == {"images": (3, 0)}
    streamed = client.post(ROUTE, json=BODY | {"n": 2, "stream": True}, headers=headers)
    edited = client.post("/v1/images/edits", data=BODY | {"n": "2"}, files={"image": png()}, headers=headers)
    drawn = client.post(
        "/sdapi/v1/txt2img", json=BODY | {"batch_size": 2}, auth=("x", keys.secrets["images"])
    )
    for refused in (streamed, edited, drawn):
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert client.post(ROUTE, json=BODY, headers=headers).status_code == 200


def test_device_seconds_of_a_day_are_limited(client: TestClient, keys: Keys) -> None:
    headers = keys.bearer("seconds")
    statuses = [client.post(ROUTE, json=BODY, headers=headers).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


def test_a_streamed_request_is_settled_when_its_stream_has_ended(client: TestClient, keys: Keys) -> None:
    headers = keys.bearer("streaming")
    with client.stream("POST", ROUTE, json=BODY | {"n": 3, "stream": True}, headers=headers) as answer:
        assert limits_of(answer)["images"] == (9, 6)
        answer.read()
    answer = client.post(ROUTE, json=BODY, headers=headers)
    assert limits_of(answer) == {
        "images": (9, 5),
        "device-seconds": (50, pytest.approx(50 - 4 * SECONDS, abs=0.01)),
    }


def test_what_fails_costs_nothing(client: TestClient, keys: Keys, backend: FakeBackend) -> None:
    headers = keys.bearer("failing")
    backend.errors = [StageFailed()] * 4
    assert client.post(ROUTE, json=BODY | {"n": 4}, headers=headers).status_code == 503
    backend.errors = []
    answer = client.post(ROUTE, json=BODY, headers=headers)
    assert limits_of(answer) == {
        "images": (4, 3),
        "device-seconds": (50, pytest.approx(50 - SECONDS, abs=0.01)),
    }


async def test_many_at_once_do_not_overspend(keys: Keys, folder: Path, backend: FakeBackend) -> None:
    """80 requests of one image under a cap of 20, while none of them is done."""
    app = build_gateway(backend, MODEL, make_settings(folder))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        backend.gate.clear()
        posts = [
            asyncio.ensure_future(http.post(ROUTE, json=BODY, headers=keys.bearer("many"))) for _ in range(80)
        ]
        for _ in range(20):
            await backend.waiting.acquire()
        backend.gate.set()
        answers = await asyncio.gather(*posts)
    assert sorted(answer.status_code for answer in answers) == 20 * [200] + 60 * [429]
    assert len(backend.drawn) == 20


async def test_who_leaves_is_charged_what_was_begun(keys: Keys, folder: Path, backend: FakeBackend) -> None:
    app = build_gateway(backend, MODEL, make_settings(folder))
    learn(app.state.gateway.access)
    transport = httpx2.ASGITransport(app=app)
    headers = keys.bearer("leaving")
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        first = limits_of(await http.post(ROUTE, json=BODY, headers=headers))
        backend.gate.clear()
        post = asyncio.ensure_future(http.post(ROUTE, json=BODY | {"n": 2}, headers=headers))
        for _ in range(3):
            await backend.waiting.acquire()
        post.cancel()
        await asyncio.gather(post, return_exceptions=True)
        backend.gate.set()
        second = limits_of(await http.post(ROUTE, json=BODY, headers=headers))
    assert first["images"] == (4, 3) and second["images"] == (4, 2)
    charged = first["device-seconds"][1] - second["device-seconds"][1] - SECONDS
    assert 0.0 < charged < 2 * SECONDS


async def test_the_tool_is_limited_and_says_so(keys: Keys, folder: Path, backend: FakeBackend) -> None:
    with served(build_gateway(backend, MODEL, make_settings(folder))) as url:
        async with httpx2.AsyncClient(headers=keys.bearer("agent")) as http:
            results = []
            for _ in range(2):
                async with Client(streamable_http_client(f"{url}/mcp", http_client=http)) as tool:
                    results.append(await tool.call_tool("generate_image", {"prompt": "p", "n": 2}))
        assert httpx2.post(f"{url}/mcp", json={}).status_code == 401
    assert [result.is_error for result in results] == [False, True]
    assert "images_per_day" in str(results[1].content)


def test_models_that_a_key_may_not_use_are_refused(client: TestClient, keys: Keys) -> None:
    answer = client.post(ROUTE, json=BODY, headers=keys.bearer("models"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
    assert answer.json()["error"]["param"] == "model"
    assert "may not use 'fake-8'; allowed: another" in answer.json()["error"]["message"]
    assert client.post(ROUTE, json=BODY, headers=keys.bearer("own model")).status_code == 200


def test_the_key_is_in_accounts_and_its_secret_nowhere(
    client: TestClient, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = keys.bearer("painter") | {"x-request-id": keys.secrets["renewed"]}
    for _ in range(3):
        client.post(f"{ROUTE}?key={keys.secrets['alice']}", json=BODY | {"n": 2}, headers=headers)
    client.post(ROUTE, json=BODY, headers={"authorization": f"Bearer {keys.secrets['revoked']}"})
    report = client.get("/v1/accounting?latest=5", headers=ADMIN).json()
    (account,) = (row for row in report["accounts"] if row["key_name"] == "painter")
    key_id = keys.keys["painter"].id
    assert (account["key"], account["images"], account["requests"]["done"]) == (key_id, 2, 1)
    assert {request["key_name"] for request in report["latest"]} == {"painter"}
    records = [vars(record) for record in caplog.records if record.name.startswith("safelight")]
    lines = [record["fields"] for record in records if "fields" in record]
    assert [(line["key"], line["key_name"]) for line in lines if line.get("key")] == 3 * [(key_id, "painter")]
    metrics = client.get("/metrics", headers=ADMIN).text
    written = json.dumps(report) + metrics + str(records)
    for secret in (*keys.secrets.values(), ADMIN_KEY):
        assert secret not in written.replace(keys.secrets["renewed"], "") and secret[11:] not in metrics
    assert key_id not in metrics and "painter" not in metrics


def test_device_seconds_and_spend_are_those_of_the_stages() -> None:
    ledger, recorder = Ledger(lambda: 1e9), RequestRecorder("r", "m", "key_1", "alice")
    ledger.receive(GatewayReport("g", 0, (replace(recorder.close(), image_usages=(USAGE,)),)))
    events = (UsageEvent(recorder.id, UsageAmounts(device_seconds=1.5)),)
    status = FakeBackend().stages["denoise"]
    assert status is not None
    ledger.receive(StageReport("s", 0, "denoise", events, StageTotals(busy=1.5), status, 1, 1))
    (account,) = build_report(ledger, Settings(price_per_device_hour=7200.0)).accounts
    assert (account.key, account.key_name, account.images) == ("key_1", "alice", 1)
    assert (account.device_seconds, account.spend) == (1.5, 3.0)
