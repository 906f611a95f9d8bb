"""Several models at one gateway: the request's `model` chooses, and everything else follows the model."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.errors import StageLost
from safelight.service.http.gateway import on_models_change
from safelight.service.http.mcp_server import describe_tool
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.messages import StageStatus
from safelight.service.model_backends import ModelBackend
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.http.uploads import png
from tests.service.two_models import OTHER, TwoModels, two_models

PROMPT = {"prompt": "apple"}


@pytest.fixture
def service() -> Iterator[TwoModels]:
    with two_models() as service:
        while not (service.first.drawn and service.second.drawn):  # the warm-up images
            service.client.get("/livez")
        yield service


def metric(service: TwoModels, name: str) -> dict[str, float]:
    """The values of a metric by model, those of other labels added up."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(service.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                model = sample.labels["model"]
                values[model] = values.get(model, 0.0) + sample.value
    return values


@pytest.mark.parametrize(
    ("name", "model"),
    [
        (None, MODEL),
        ("fake-8", MODEL),
        ("gpt-image-1", MODEL),
        ("openai/dall-e-3", MODEL),
        ("  ", MODEL),
        ("shop/turbo", OTHER),
        ("turbo-folder", OTHER),
        (" SHOP/Turbo ", OTHER),
    ],
)
def test_the_name_chooses_the_model_with_its_defaults(
    service: TwoModels, name: str | None, model: Any
) -> None:
    body = PROMPT if name is None else {**PROMPT, "model": name}
    answer = service.client.post(ROUTE, json=body)
    cost = answer.json()["usage"]["safelight"]
    assert (cost["model"], cost["num_inference_steps"], cost["solver"]) == (
        model.id,
        model.num_steps,
        model.solver,
    )
    backend = service.first if model is MODEL else service.second
    params, _, context = backend.calls[-1]
    assert (params.width, params.height, context.model) == (*model.native_size, model.id)
    assert len(service.first.drawn) + len(service.second.drawn) == 3


def test_what_is_allowed_is_the_models_own(service: TwoModels) -> None:
    for body, allowed in (
        ({"size": "8x8", "model": OTHER.id}, "shop/turbo; allowed: 16x16, 16x8"),
        ({"size": "16x16"}, "fake-8; allowed: 8x8, 16x8"),
        ({"solver": "plms", "model": OTHER.id}, "shop/turbo; allowed: ddim, heun"),
        ({"solver": "heun"}, "fake-8; allowed: euler"),
    ):
        refusal = service.client.post(ROUTE, json={**PROMPT, **body}, headers={"x-safelight-strict": "1"})
        assert refusal.status_code == 400
        assert allowed in refusal.json()["error"]["message"]
    # read tolerantly, a size becomes the nearest of the model that is asked for
    answer = service.client.post(ROUTE, json={"size": "17x17", "model": OTHER.id, **PROMPT}).json()
    assert answer["size"] == "16x16"


def test_an_unknown_name_is_refused_with_the_names_of_all(service: TwoModels) -> None:
    for strict in ("0", "1"):
        answer = service.client.post(
            ROUTE, json={**PROMPT, "model": "turbo"}, headers={"x-safelight-strict": strict}
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert (
            "allowed: fake-8, gpt-image-1, dall-e-2, dall-e-3, shop/turbo, turbo-folder" in error["message"]
        )


def test_the_operators_aliases_are_names_of_the_first_but_take_no_name_of_another() -> None:
    with two_models(Settings(aliases="flux,*")) as service:
        for name, model in (
            ("flux", MODEL),
            ("anything", MODEL),
            ("Shop/Turbo", OTHER),
            ("shop/turbo", OTHER),
        ):
            answer = service.client.post(ROUTE, json={**PROMPT, "model": name})
            assert answer.json()["usage"]["safelight"]["model"] == model.id


def test_an_id_precedes_the_folders_name_of_another() -> None:
    names = ModelNames(OTHER, (), (MODEL.__class__(**{**_fields(MODEL), "id": "turbo-folder"}),))
    assert names.find("turbo-folder").id == "turbo-folder"
    assert names.find("shop/turbo") is OTHER


def _fields(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_both_are_listed_the_default_first(service: TwoModels) -> None:
    service.second.stages["denoise"] = StageStatus(images=1, attention="fused")  # type: ignore[index]
    models = service.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["defaults"]["size"], model["attention"]) for model in models] == [
        ("fake-8", "8x8", None),
        ("shop/turbo", "16x16", "fused"),
    ]
    assert models[0]["aliases"] == ["gpt-image-1", "dall-e-2", "dall-e-3"]
    assert models[1]["aliases"] == ["turbo-folder"]
    assert models[1]["solvers"] == ["ddim", "heun"]
    assert service.client.get("/v1/models/turbo-folder").json() == models[1]
    assert service.client.get("/v1/models/turbo").status_code == 404


def test_the_cost_curve_is_that_of_the_model(service: TwoModels) -> None:
    for backend, seconds in ((service.first, 1.0), (service.second, 2.0)):
        curve = CostCurve((1e9,), (seconds,))
        backend.stages["denoise"] = StageStatus(images=1, curve=curve)  # type: ignore[index]
    for query, model, seconds in (("", MODEL, 1.0), ("?model=shop/turbo", OTHER, 2.0)):
        answer = service.client.get(f"/v1/curve{query}").json()
        assert (answer["model"], answer["denoise"]["seconds"]) == (model.id, [seconds])
    assert service.client.get("/v1/curve?model=none").status_code == 404


def test_requests_are_accounted_and_counted_by_their_model(service: TwoModels) -> None:
    for body in ({"n": 2, "model": OTHER.id}, {}, {"size": "9x9x9", "model": OTHER.id}):
        service.client.post(ROUTE, json={**PROMPT, **body})
    report = service.client.get("/v1/accounting", params={"latest": 3}).json()
    assert [request["model"] for request in report["latest"]] == [OTHER.id, MODEL.id, OTHER.id]
    figures = {model["model"]: model for model in report["models"]}
    assert {name: model["images"] for name, model in figures.items()} == {MODEL.id: 1, OTHER.id: 2}
    assert figures[OTHER.id]["requests"] == {"done": 1, "refused": 1, "aborted": 0, "failed": 0}
    assert report["images"] == 3 and sum(report["requests"].values()) == 3
    assert metric(service, "safelight_images_total") == {MODEL.id: 1, OTHER.id: 2}
    assert metric(service, "safelight_requests_total") == {MODEL.id: 1, OTHER.id: 2}
    assert metric(service, "safelight_image_nfe_total") == {MODEL.id: 5, OTHER.id: 10}
    assert metric(service, "safelight_stage_up") == {MODEL.id: 3, OTHER.id: 3}


def test_a_retry_is_drawn_and_counted_by_its_model(service: TwoModels) -> None:
    service.second.errors = [StageLost()]
    assert service.client.post(ROUTE, json={**PROMPT, "model": OTHER.id}).status_code == 200
    assert metric(service, "safelight_images_retried_total") == {MODEL.id: 0, OTHER.id: 1}
    assert len(service.first.calls) == 1  # the warm-up image


def test_ready_means_that_all_models_are(service: TwoModels) -> None:
    assert service.client.get("/readyz").status_code == 200
    service.second.stages["denoise"] = None  # type: ignore[index]
    answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert {stage: part["ready"] for stage, part in answer.json()["stages"].items()} == {
        "encode": True,
        "denoise": False,
        "decode": True,
    }


def test_an_edit_gets_the_sizes_and_strength_rules_of_its_model(service: TwoModels) -> None:
    answer = service.client.post(
        "/v1/images/edits", data={**PROMPT, "model": OTHER.id}, files={"image": png()}
    )
    assert answer.status_code == 200
    assert answer.json()["usage"]["safelight"]["model"] == OTHER.id
    [upload] = service.second.uploads
    assert (upload.size, upload.sizes) == (None, OTHER.sizes)
    assert service.first.uploads == []


def test_a_stream_is_of_its_model(service: TwoModels) -> None:
    with service.client.stream("POST", ROUTE, json={**PROMPT, "model": OTHER.id, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    cost = json.loads(lines[-1].removeprefix("data: "))["usage"]["safelight"]
    assert (cost["model"], cost["num_inference_steps"]) == (OTHER.id, 2)


def test_the_schema_allows_what_any_of_them_does(service: TwoModels) -> None:
    body = service.client.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]
    fields = body["content"]["application/json"]["schema"]["properties"]
    choices = {name: fields[name]["anyOf"][0]["enum"] for name in ("size", "solver", "timestep_spacing")}
    assert choices == {
        "size": ["auto", "8x8", "16x8", "16x16"],
        "solver": ["euler", "ddim", "plms", "heun"],
        "timestep_spacing": ["trailing", "karras", "linspace"],
    }
    assert fields["model"]["anyOf"][0]["enum"][-2:] == ["shop/turbo", "turbo-folder"]


def test_sdapi_lists_both_and_draws_with_the_checkpoint_that_is_asked_for(service: TwoModels) -> None:
    models = service.client.get("/sdapi/v1/sd-models").json()
    assert [model["title"] for model in models] == [MODEL.id, OTHER.id]
    for settings, model in (
        ({"sd_model_checkpoint": "shop/turbo [0badcafe]"}, OTHER),
        ({"sd_model_checkpoint": "fake-8"}, MODEL),
        ({"sd_model_checkpoint": None}, MODEL),
        (None, MODEL),
    ):
        answer = service.client.post("/sdapi/v1/txt2img", json={**PROMPT, "override_settings": settings})
        info = json.loads(answer.json()["info"])
        assert (info["sd_model_name"], info["safelight"]["model"]) == (model.id, model.id)
    refusal = service.client.post(
        "/sdapi/v1/txt2img", json={**PROMPT, "override_settings": {"sd_model_checkpoint": "v1-5"}}
    )
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "model_not_found")


def test_the_mcp_tool_offers_the_choice_only_if_there_is_one() -> None:
    one = describe_tool(ModelNames(MODEL)).input_schema["properties"]
    both = describe_tool(ModelNames(MODEL, (), (OTHER,)))
    assert "model" not in one
    assert both.input_schema["properties"]["model"]["enum"] == [MODEL.id, OTHER.id]
    assert both.input_schema["properties"]["size"]["enum"] == ["auto", "8x8", "16x8", "16x16"]
    assert "fake-8 or shop/turbo" in (both.description or "")


def test_models_come_and_go_while_the_gateway_runs(service: TwoModels) -> None:
    """The schema, the list, the metrics and the refusals follow."""
    third = MODEL.__class__(**{**_fields(MODEL), "id": "third", "sizes": ((8, 16),)})
    entry = ModelBackend(third, FakeBackend())
    [first] = [ModelBackend(MODEL, service.first)]
    service.backends.replace([first, entry])
    on_models_change(service.client.app)  # type: ignore[arg-type]
    assert [model["id"] for model in service.client.get("/v1/models").json()["data"]] == ["fake-8", "third"]
    answer = service.client.post(ROUTE, json={**PROMPT, "model": "third"})
    assert answer.json()["size"] == "8x16"
    refusal = service.client.post(ROUTE, json={**PROMPT, "model": OTHER.id})
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "model_not_found")
    body = service.client.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]
    fields = body["content"]["application/json"]["schema"]["properties"]
    assert fields["size"]["anyOf"][0]["enum"] == ["auto", "8x8", "16x8", "8x16"]
    assert metric(service, "safelight_stage_up") == {MODEL.id: 3, "third": 3}
    assert metric(service, "safelight_images_total") == {MODEL.id: 0, "third": 1}
    assert service.client.get("/readyz").status_code == 200
