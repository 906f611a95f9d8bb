"""The routes beside the images, and what every answer has in common."""

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
    """Every sample of /metrics by name and label values."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {" ".join((s.name, *s.labels.values())): s.value for family in families for s in family.samples}


def test_the_served_model_is_listed_with_what_can_be_asked_of_it(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("fake-8", "model", "safelight")
    assert model["sizes"] == ["8x8", "16x8"]
    assert model["solvers"] == ["euler", "ddim", "plms"]
    assert model["defaults"] == {
        "size": "8x8", "num_inference_steps": 4, "guidance_scale": 4.0, "solver": "euler", "timestep_spacing": "trailing"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fake-8", "gpt-image-1"])
def test_one_model_is_found_by_its_id_and_its_aliases(client, name):
    assert client.get(f"/v1/models/{name}").json()["id"] == "fake-8"


def test_a_model_that_is_not_served_is_404(client):
    answer = client.get("/v1/models/sdxl")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", ROUTE, "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/readyz", "GET")],
)
def test_a_wrong_method_is_405_and_says_the_right_one(client, method, path, allow):
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert allow in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/v1/images/edits", "/v1/models/", "/v2/models"])
def test_an_unknown_route_is_404(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_docs_are_there(client):
    assert client.get("/docs").status_code == 200


def test_the_cost_of_a_tick_and_the_attention_that_runs_are_told(client, backend):
    assert client.get("/v1/curve").status_code == 503  # nobody has measured yet
    assert client.get("/v1/models").json()["data"][0]["attention"] is None
    curve = CostCurve((1e9, 4e9), (0.01, 0.03), 1.5)
    backend.stages = {**backend.stages, "denoise": StageStatus(images=1, attention="products", curve=curve)}
    measured = {"work_flops": [1e9, 4e9], "seconds": [0.01, 0.03], "factor": 1.5}
    assert client.get("/v1/curve").json() == {"encode": None, "denoise": measured, "decode": None}
    assert client.get("/v1/models").json()["data"][0]["attention"] == "products"
    told = metrics(client)
    assert told["safelight_attention_info products"] == 1
    assert told["safelight_tick_slowdown_ratio"] == 1.5


def test_the_gateway_is_alive_and_ready(client):
    assert client.get("/livez").json() == {"alive": True}
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "stages": dict.fromkeys(STAGES, {"ready": True, "pictures": 1}),
        "reason": None,
        "failed": False,
    }


def test_not_ready_before_the_warm_up_image_is_drawn():
    backend = FakeBackend(
        stages={"encode": StageStatus(images=1), "denoise": StageStatus(), "decode": StageStatus()}
    )
    backend.gate.clear()
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert {name: stage["ready"] for name, stage in answer.json()["stages"].items()} == {
            "encode": True,
            "denoise": False,
            "decode": False,
        }


def test_the_warm_up_is_tried_again_until_it_is_drawn(monkeypatch):
    monkeypatch.setattr("safelight.service.http.readiness.RETRY_SECONDS", 0.0)
    backend = FakeBackend(StageFailed(), ValueError("not ours"))
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert wait_for(lambda: client.get("/readyz").status_code == 200)
    assert len(backend.drawn) == 1


def test_a_model_that_cannot_draw_is_said_and_not_tried_again(monkeypatch):
    monkeypatch.setattr("safelight.service.http.readiness.RETRY_SECONDS", 0.0)
    backend = FakeBackend(BrokenImage("The model drew no image."))
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        assert wait_for(lambda: client.get("/readyz").json()["failed"])
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "The model drew no image.")
    assert backend.drawn == []


def test_not_ready_while_a_stage_does_not_answer(client, backend):
    backend.stages = {**backend.stages, "denoise": None}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["stages"]["denoise"] == {"ready": False, "pictures": 0}
    assert metrics(client)["safelight_stage_up denoise"] == 0


def test_a_backend_that_cannot_say_how_it_is_is_not_ready(client, backend, monkeypatch):
    async def broken() -> None:
        raise RuntimeError("no cluster")

    monkeypatch.setattr(backend, "status", broken)
    assert client.get("/readyz").status_code == 503


def test_a_sane_request_id_is_echoed(client):
    assert client.get("/livez", headers={"x-request-id": "job-17.a"}).headers["x-request-id"] == "job-17.a"


@pytest.mark.parametrize("given", [{}, {"x-request-id": "a b"}, {"x-request-id": "x" * 129}])
def test_other_requests_get_a_fresh_id(client, given):
    ids = {client.get("/nowhere", headers=given).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(i) == 32 for i in ids)


def test_behind_serves_proxy_the_id_is_left_to_it(backend):
    app = build_gateway(backend, MODEL, Settings(), proxied=True)
    assert "x-request-id" not in TestClient(app).get("/livez").headers


def test_every_answer_says_how_long_it_took(client):
    assert int(client.get("/nowhere").headers["openai-processing-ms"]) >= 0


def test_a_bug_in_a_route_is_503_and_opaque(client, monkeypatch):
    monkeypatch.setattr("safelight.service.http.gateway.parse_request", lambda _: 1 / 0)
    answer = client.post(ROUTE, json={"prompt": "p"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "zero" not in answer.text


def test_metrics_tell_of_requests_and_stages(client, backend):
    client.post(ROUTE, json={"prompt": "p", "n": 2})
    client.post(ROUTE, json={"prompt": ""})
    backend.stages = {**backend.stages, "denoise": StageStatus(images=3, running=2, waiting=1)}
    seen = metrics(client)
    assert seen["safelight_requests_total ok done"] == 1
    assert seen["safelight_requests_total invalid_value refused"] == 1
    assert seen["safelight_images_total"] == 2
    assert seen["safelight_image_nfe_total"] == 8
    assert seen["safelight_image_device_seconds_total denoise"] == 2.0
    assert seen["safelight_stage_images_running denoise"] == 2
    assert seen["safelight_stage_images_waiting denoise"] == 1
    assert seen["safelight_images_in_flight"] == 0


def wait_for(condition, tries: int = 1000) -> bool:
    return any(condition() for _ in range(tries))
