"""Routes other than image generation, and what every response has in common."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.backend import STAGES
from safelight.service.errors import BrokenImage, StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE


def metrics(client: TestClient) -> dict[str, float]:
    """Every value of /metrics by name and label values, but for that of the only model."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        " ".join((sample.name, *(text for label, text in sample.labels.items() if label != "model"))): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def test_the_served_model_is_listed_with_its_choices(client: TestClient) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    [model] = models["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("fake-8", "model", "safelight")
    assert model["sizes"] == ["8x8", "16x8"]
    assert model["solvers"] == ["euler", "ddim", "plms"]
    assert model["defaults"] == {
        "size": "8x8",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "solver": "euler",
        "timestep_spacing": "trailing",
    }


@pytest.mark.parametrize("name", ["fake-8", "gpt-image-1"])
def test_one_model_is_found_by_its_id_and_its_aliases(client: TestClient, name: str) -> None:
    assert client.get(f"/v1/models/{name}").json()["id"] == "fake-8"


def test_a_model_that_is_not_served_is_404(client: TestClient) -> None:
    response = client.get("/v1/models/sdxl")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", ROUTE, "POST"), ("DELETE", "/v1/models", "GET, HEAD, POST"), ("POST", "/readyz", "GET, HEAD")],
)
def test_a_wrong_method_is_405_and_names_the_allowed_one(
    client: TestClient, method: str, path: str, allow: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert allow in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/images/variations", "/v1", "/v2/models"])
def test_an_unknown_route_is_404(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_cost_curve_and_the_attention_back_end_are_reported(
    client: TestClient, backend: FakeBackend
) -> None:
    assert client.get("/v1/curve").status_code == 503  # not measured yet
    assert client.get("/v1/models").json()["data"][0]["attention"] is None
    curve = CostCurve((1e9, 4e9), (0.01, 0.03), 1.5)
    backend.stages = {**backend.stages, "denoise": StageStatus(images=1, attention="products", curve=curve)}
    measured = {"work_flops": [1e9, 4e9], "seconds": [0.01, 0.03], "factor": 1.5}
    assert client.get("/v1/curve").json() == {
        "model": "fake-8",
        "max_rows": 16,
        "max_tokens": 0,
        "encode": None,
        "denoise": measured,
        "decode": None,
    }
    assert client.get("/v1/models").json()["data"][0]["attention"] == "products"
    values = metrics(client)
    assert values["safelight_attention_info products"] == 1
    assert values["safelight_tick_slowdown_ratio"] == 1.5


def test_the_gateway_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"alive": True}
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "stages": dict.fromkeys(STAGES, {"ready": True, "asleep": False, "pictures": 1}),
        "reason": None,
        "failed": False,
    }


def test_not_ready_before_the_warm_up_image_is_drawn() -> None:
    backend = FakeBackend(
        stages={"encode": StageStatus(images=1), "denoise": StageStatus(), "decode": StageStatus()}
    )
    backend.gate.clear()
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        response = client.get("/readyz")
        assert response.status_code == 503
        assert {name: stage["ready"] for name, stage in response.json()["stages"].items()} == {
            "encode": True,
            "denoise": False,
            "decode": False,
        }


def test_a_failed_warm_up_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.service.http.readiness.RETRY_SECONDS", 0.0)
    backend = FakeBackend(StageFailed(), ValueError("a bug"))
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert wait_for(lambda: client.get("/readyz").status_code == 200)
    assert len(backend.drawn) == 1


def test_a_model_that_cannot_draw_is_reported_and_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.service.http.readiness.RETRY_SECONDS", 0.0)
    backend = FakeBackend(BrokenImage("The model drew no image."))
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert wait_for(lambda: client.get("/readyz").json()["failed"])
        response = client.get("/readyz")
    assert (response.status_code, response.json()["reason"]) == (503, "The model drew no image.")
    assert backend.drawn == []


def test_not_ready_while_a_stage_does_not_answer(client: TestClient, backend: FakeBackend) -> None:
    backend.stages = {**backend.stages, "denoise": None}
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["stages"]["denoise"] == {
        "ready": False,
        "asleep": False,
        "pictures": 0,
    }
    assert metrics(client)["safelight_stage_up denoise"] == 0


def test_a_stage_that_sleeps_is_ready_and_says_so(backend: FakeBackend) -> None:
    """The backend does not ask a stage that may have no replica, and the ledger knows of none."""
    with TestClient(build_gateway(backend, MODEL, Settings(encode_replicas="0-2"))) as client:
        assert wait_for(lambda: client.get("/readyz").status_code == 200)
        backend.stages = {**backend.stages, "encode": None}
        response = client.get("/readyz")
        assert response.status_code == 200
        assert response.json()["stages"] == {
            "encode": {"ready": True, "asleep": True, "pictures": 0},
            "denoise": {"ready": True, "asleep": False, "pictures": 1},
            "decode": {"ready": True, "asleep": False, "pictures": 1},
        }
        backend.stages = {**backend.stages, "denoise": None}  # which may not sleep
        assert client.get("/readyz").json()["stages"]["denoise"] == {
            "ready": False,
            "asleep": False,
            "pictures": 0,
        }


def test_not_ready_without_the_backends_status(
    client: TestClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("no cluster")

    monkeypatch.setattr(backend, "status", broken)
    assert client.get("/readyz").status_code == 503


def test_a_valid_request_id_is_echoed(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "job-17.a"}).headers["x-request-id"] == "job-17.a"


@pytest.mark.parametrize("headers", [{}, {"x-request-id": "a b"}, {"x-request-id": "x" * 129}])
def test_other_requests_get_a_random_id(client: TestClient, headers: dict[str, str]) -> None:
    ids = {client.get("/nowhere", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(request_id) == 32 for request_id in ids)


def test_behind_serves_proxy_the_id_is_added_by_the_proxy(backend: FakeBackend) -> None:
    app = build_gateway(backend, MODEL, Settings(), proxied=True)
    assert "x-request-id" not in TestClient(app).get("/livez").headers


def test_every_response_has_its_processing_time(client: TestClient) -> None:
    assert int(client.get("/nowhere").headers["openai-processing-ms"]) >= 0


def test_a_bug_in_a_route_is_503_without_details(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.service.http.image_requests.read_request", lambda *_: 1 / 0)
    response = client.post(ROUTE, json={"prompt": "p"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert "zero" not in response.text


def test_metrics_report_requests_and_stages(client: TestClient, backend: FakeBackend) -> None:
    client.post(ROUTE, json={"prompt": "p", "n": 2})
    client.post(ROUTE, json={"prompt": ""})
    backend.stages = {**backend.stages, "denoise": StageStatus(images=3, running=2, waiting=1)}
    values = metrics(client)
    assert values["safelight_requests_total ok done"] == 1
    assert values["safelight_requests_total invalid_value refused"] == 1
    assert values["safelight_images_total"] == 2
    assert values["safelight_image_nfe_total"] == 10
    assert values["safelight_image_rows_total"] == 18
    assert values["safelight_image_tokens_total"] == 306
    assert values["safelight_image_device_seconds_total denoise"] == 3.5
    assert values["safelight_image_flops_total denoise"] == 4000
    assert values["safelight_image_queue_seconds_sum"] == 1.375
    assert values["safelight_stage_images_running denoise"] == 2
    assert values["safelight_stage_images_waiting denoise"] == 1
    assert values["safelight_images_in_flight"] == 0


def wait_for(condition: Callable[[], bool], tries: int = 1000) -> bool:
    return any(condition() for _ in range(tries))
