"""`/v1/accounting` over HTTP: one record for each way a request can end, and only with the admin key."""

from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from safelight.service.errors import QueueFull, StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from safelight.service.usage.client import LocalLedger
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.service_snapshot import ServiceSnapshot
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE


def test_every_request_has_one_record_however_it_ends() -> None:
    backend = FakeBackend()
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert client.post(ROUTE, json={"prompt": "x", "n": 2}).status_code == 200
        assert client.post(ROUTE, json={"prompt": ""}).status_code == 400
        assert (
            client.post(ROUTE, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        )
        while len(backend.drawn) < 3:  # the warm-up image too, which must not get an error
            client.get("/livez")
        backend.errors = [QueueFull()]
        assert client.post(ROUTE, json={"prompt": "x"}).status_code == 429
        backend.errors = [StageFailed()]
        assert client.post(ROUTE, json={"prompt": "x"}, headers={"x-request-id": "mine"}).status_code == 503
        report = client.get("/v1/accounting", params={"latest": 10}).json()
    assert report["requests"] == {"done": 1, "refused": 3, "aborted": 0, "failed": 1}
    assert report["refusals"] == {"invalid_value": 1, "invalid_json": 1, "queue_full": 1, "stage_failed": 1}
    assert report["images"] == 2
    assert [request["code"] for request in report["latest"]] == [
        "stage_failed",
        "queue_full",
        "invalid_json",
        "invalid_value",
        "ok",
    ]
    assert report["latest"][0]["request_id"] == "mine"
    assert report["accounts"][0]["key"] == "anonymous" and report["accounts"][0]["model"] == MODEL.id


def test_the_window_and_the_number_of_requests_reach_the_ledger() -> None:
    queries: list[tuple[float | None, int]] = []

    class RecordingLedger(LocalLedger):
        async def report(self, window: float | None, latest: int) -> AccountingReport:
            queries.append((window, latest))
            return await super().report(window, latest)

    ledger = RecordingLedger(Settings())
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(), ledger))
    for query in ("", "?window=90.5&latest=7"):
        assert client.get(f"/v1/accounting{query}").status_code == 200
    assert queries == [(None, 0), (90.5, 7)]


class DeadLedger(LocalLedger):
    """A ledger that does not answer while it is dead."""

    is_dead = True

    async def snapshot(self) -> ServiceSnapshot:
        if self.is_dead:
            raise TimeoutError
        return await super().snapshot()

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        if self.is_dead:
            raise TimeoutError
        return await super().report(window, latest)


def test_without_the_ledger_its_metrics_are_absent_and_the_others_are_served() -> None:
    ledger = DeadLedger(Settings())
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(), ledger))
    assert client.post(ROUTE, json={"prompt": "x", "n": 2}).status_code == 200
    for ledger.is_dead in (False, True, False):
        response = client.get("/metrics")
        assert response.status_code == 200
        assert ('safelight_images_total{model="fake-8"} 2.0' in response.text) != ledger.is_dead
        assert ("safelight_stage_replicas" in response.text) != ledger.is_dead
        assert f"safelight_ledger_up {float(not ledger.is_dead)}" in response.text
        assert 'safelight_stage_up{model="fake-8",stage="denoise"} 1.0' in response.text


def test_without_the_ledger_the_accounting_says_so() -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(), DeadLedger(Settings())))
    answer = client.get("/v1/accounting")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "accounts_unavailable")


def test_two_gateways_show_the_requests_of_both() -> None:
    ledger = LocalLedger(Settings())
    first, second = (TestClient(build_gateway(FakeBackend(), MODEL, Settings(), ledger)) for _ in range(2))
    for client in (first, second, second):
        assert client.post(ROUTE, json={"prompt": "x"}).status_code == 200
    assert second.post(ROUTE, json={"prompt": ""}).status_code == 400
    first.get("/metrics"), second.get("/metrics")  # each delivers what it has
    for client in (first, second):
        text = client.get("/metrics").text
        assert 'safelight_requests_total{code="ok",model="fake-8",outcome="done"} 3.0' in text
        assert 'safelight_requests_total{code="invalid_value",model="fake-8",outcome="refused"} 1.0' in text
        assert "safelight_gateway_replicas 2.0" in text
        assert client.get("/v1/accounting").json()["requests"]["done"] == 3


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer secre", 401),
        ("Bearer secretly", 401),
        ("Basic secret", 401),
        ("Bearer secret", 200),
        ("bearer  secret", 200),
    ],
)
def test_the_route_requires_the_admin_key(header: str | None, status: int) -> None:
    with TestClient(build_gateway(FakeBackend(), MODEL, Settings(admin_key="secret"))) as client:
        answer = client.get("/v1/accounting", headers={"authorization": header} if header else {})
    assert answer.status_code == status
    if status == 401:
        assert (
            answer.json()["error"]["code"] == "invalid_api_key"
            and "admin key" in answer.json()["error"]["message"]
        )


@pytest.mark.parametrize("key", ["", "secret"])
def test_the_schema_asks_for_the_admin_key_if_the_route_does(key: str) -> None:
    schema: dict[str, Any] = build_gateway(FakeBackend(), MODEL, Settings(admin_key=SecretStr(key))).openapi()
    expected: list[Any] | None = [{"admin_key": []}] if key else None
    assert schema["paths"]["/v1/accounting"]["get"].get("security") == expected


@pytest.mark.parametrize("query", ["window=0", "window=-1", "window=x", "latest=-1", "latest=2000"])
def test_an_error_names_the_invalid_query_parameter(client: TestClient, query: str) -> None:
    answer = client.get(f"/v1/accounting?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]
