"""A few-step student over HTTP: it has the steps and the guidance that it learned, whatever clients send."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.openapi_answers import check_answers

ROUTE = "/v1/images/generations"
STUDENT = replace(MODEL, num_steps=4, max_steps=4, guidance_scale=1.0, has_distilled_guidance=True)
STRICT = {"x-safelight-strict": "1"}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with TestClient(build_gateway(backend, STUDENT, Settings())) as client:
        check_answers(client)
        yield client


@pytest.mark.parametrize(
    ("fields", "num_steps", "adjusted"),
    [
        ({}, 4, {}),
        ({"num_inference_steps": 2, "guidance_scale": 1}, 2, {}),
        ({"num_inference_steps": 4, "guidance_scale": 0}, 4, {}),
        ({"steps": 20}, 4, {"steps": 4}),
        ({"num_inference_steps": 50, "cfg_scale": 7}, 4, {"num_inference_steps": 4, "cfg_scale": None}),
        ({"guidance_scale": 1.5}, 4, {"guidance_scale": None}),
        ({"quality": "high"}, 4, {}),
        ({"quality": "low"}, 2, {}),
    ],
)
def test_steps_and_guidance_are_those_that_it_learned(
    client: TestClient, backend: FakeBackend, fields: dict[str, object], num_steps: int, adjusted: Any
) -> None:
    answer = client.post(ROUTE, json={"prompt": "p", "seed": 0} | fields)
    assert answer.status_code == 200, answer.text
    params, _ = backend.drawn[-1]
    assert (params.num_steps, params.guidance_scale) == (num_steps, 1.0)
    items = answer.json()["usage"]["safelight"]["adjusted"]
    assert {item["field"]: item["used"] for item in items} == adjusted


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_inference_steps", 5, "between 1 and 4"),
        ("guidance_scale", 5, "no effect in fake-8, which learned its guidance"),
    ],
)
def test_strictly_it_refuses_what_it_did_not_learn(
    client: TestClient, field: str, value: int, message: str
) -> None:
    answer = client.post(ROUTE, json={"prompt": "p", field: value}, headers=STRICT)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field and message in answer.json()["error"]["message"]


def test_steps_beyond_every_models_limit_are_refused(client: TestClient) -> None:
    assert client.post(ROUTE, json={"prompt": "p", "num_inference_steps": 201}).status_code == 400


def test_the_limits_are_listed(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert model["limits"]["num_inference_steps"] == [1, 4]
    assert model["limits"]["guidance_scale"] == [1, 1]
