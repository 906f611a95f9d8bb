"""Requests as clients write them: what is understood, and what the answer says about it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.pipeline.catalog.model_info import MAX_SEED
from safelight.service.http.gateway import build_gateway
from safelight.service.http.reading.fields import MAX_UNKNOWN
from safelight.service.messages import ImageFormat
from safelight.service.settings import Settings
from safelight.service.usage.records import UsageRecord
from safelight.service.usage.reporter import Outbox
from tests.fakes import MODEL, FakeBackend, make_params
from tests.service.conftest import ROUTE
from tests.service.openapi_answers import check_answers

PLAIN = make_params(seed=0)

STRICT = {"x-safelight-strict": "1"}


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def client(backend: FakeBackend) -> Iterator[TestClient]:
    """One for all tests: building the schema of a gateway takes longer than most of them."""
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        check_answers(client)
        yield client


# What a client sends beside the prompt; how the parameters differ from the defaults; the adjusted fields.
UNDERSTOOD: dict[str, tuple[dict[str, object], dict[str, Any], list[str]]] = {
    "size x1024": ({"size": "1024x1024"}, {}, ["size"]),
    "size wide": ({"size": "1536x1024"}, {"width": 16}, ["size"]),
    "size star": ({"size": "1024*1024"}, {}, ["size"]),
    "size capital": ({"size": "8X8"}, {}, ["size"]),
    "size sign": ({"size": " 16 × 8 "}, {"width": 16}, ["size"]),
    "size empty": ({"size": ""}, {}, ["size"]),
    "size AUTO": ({"size": "AUTO"}, {}, ["size"]),
    "size of a square": ({"size": 512}, {}, ["size"]),
    "size largest": ({"size": "16384x1"}, {"width": 16}, ["size"]),
    "size served": ({"size": "16x8"}, {"width": 16}, []),
    "image_size": ({"image_size": "16x8"}, {"width": 16}, ["image_size"]),
    "width and height": ({"width": 640, "height": "320"}, {"width": 16}, ["width", "height"]),
    "width alone": ({"width": 1}, {}, ["width"]),
    "sides beside a size": ({"size": "8x8", "width": 16, "height": 8}, {}, ["width", "height"]),
    "sides beside auto": (
        {"size": "", "width": 640, "height": 320},
        {"width": 16},
        ["size", "width", "height"],
    ),
    "aspect_ratio": ({"aspect_ratio": "16:9"}, {"width": 16}, ["aspect_ratio"]),
    "no aspect ratio": ({"aspect_ratio": "wide"}, {}, ["aspect_ratio"]),
    "steps": ({"steps": 8, "cfg_scale": 3}, {"num_steps": 8, "guidance_scale": 3.0}, ["steps", "cfg_scale"]),
    "sampling_steps": ({"sampling_steps": "8"}, {"num_steps": 8}, ["sampling_steps"]),
    "steps null": ({"num_inference_steps": None, "steps": 8}, {"num_steps": 8}, ["steps"]),
    "steps twice": ({"steps": 8, "num_inference_steps": 9}, {"num_steps": 9}, ["steps"]),
    "camel case": ({"numInferenceSteps": 8}, {"num_steps": 8}, ["numInferenceSteps"]),
    "kebab case": ({"guidance-scale": 3}, {"guidance_scale": 3.0}, ["guidance-scale"]),
    "true_cfg_scale": ({"true_cfg_scale": 3}, {"guidance_scale": 3.0}, ["true_cfg_scale"]),
    "guidance": ({"guidance": "3.5"}, {"guidance_scale": 3.5}, ["guidance"]),
    "whole float": ({"num_inference_steps": 20.0}, {"num_steps": 20}, ["num_inference_steps"]),
    "numbers as text": (
        {"num_inference_steps": "20", "guidance_scale": " 2.5 ", "guidance_stride": "2.0"},
        {"num_steps": 20, "guidance_scale": 2.5, "guidance_stride": 2},
        ["num_inference_steps", "guidance_scale", "guidance_stride"],
    ),
    "blank number": ({"num_inference_steps": ""}, {}, ["num_inference_steps"]),
    "seed as text": ({"seed": "42"}, {"seed": 42}, ["seed"]),
    "seed of 64 bits": ({"seed": 2**64 - 1}, {"seed": MAX_SEED}, ["seed"]),
    "seed of 2^53": ({"seed": MAX_SEED + 6}, {"seed": 5}, ["seed"]),
    "seed below -1": ({"seed": -2}, {"seed": MAX_SEED - 1}, ["seed"]),
    "seed as float": ({"seed": 7.0}, {"seed": 7}, ["seed"]),
    "largest seed": ({"seed": MAX_SEED}, {"seed": MAX_SEED}, []),
    "sampler": ({"sampler": "Euler"}, {}, ["sampler"]),
    "sample_method": ({"sample_method": "ddim_trailing"}, {"solver": "ddim"}, ["sample_method"]),
    "sampler_name": (
        {"sampler_name": "PLMS Karras"},
        {"solver": "plms", "timestep_spacing": "karras"},
        ["sampler_name"],
    ),
    "sampler of another model": ({"sampler": "lcm"}, {}, ["sampler"]),
    "solver in capitals": ({"solver": "DDIM"}, {"solver": "ddim"}, ["solver"]),
    "scheduler karras": ({"scheduler": "karras"}, {"timestep_spacing": "karras"}, ["scheduler"]),
    "scheduler class": ({"scheduler": "DDIMScheduler"}, {"solver": "ddim"}, ["scheduler"]),
    "scheduler unknown": ({"scheduler": "beta"}, {}, ["scheduler"]),
    "spacing": ({"timestep_spacing": "Karras"}, {"timestep_spacing": "karras"}, ["timestep_spacing"]),
    "eta of a solver without it": ({"eta": 0.5}, {}, ["eta"]),
    "too few steps": (
        {"solver": "plms", "num_inference_steps": 1},
        {"solver": "plms", "num_steps": 3},
        ["num_inference_steps"],
    ),
    "interval as text": (
        {"guidance_interval": "[0.25, 1]"},
        {"guidance_interval": (0.25, 1.0)},
        ["guidance_interval"],
    ),
    "interval backwards": (
        {"guidance_interval": [1, "0.25"]},
        {"guidance_interval": (0.25, 1.0)},
        ["guidance_interval"],
    ),
    "extra_body": (
        {"extra_body": {"num_inference_steps": 9, "seed": 3, "colour": 1}},
        {"num_steps": 9, "seed": 3},
        ["extra_body.num_inference_steps", "extra_body.seed", "extra_body.colour"],
    ),
    "extra_body beside its field": (
        {"num_inference_steps": 8, "extra_body": {"num_inference_steps": 9}},
        {"num_steps": 8},
        ["extra_body.num_inference_steps"],
    ),
    "extra_body that is no object": ({"extra_body": "x"}, {}, ["extra_body"]),
    "extra_headers": ({"extra_headers": {"x": "y"}}, {}, ["extra_headers"]),
    "cherry studio": (
        {"image_size": "1024x1024", "batch_size": 1, "prompt_enhancement": False},
        {},
        ["image_size", "batch_size", "prompt_enhancement"],
    ),
    "model by pattern": ({"model": "gpt-image-1-mini"}, {}, ["model"]),
    "model chatgpt": ({"model": "chatgpt-image-latest"}, {}, ["model"]),
    "model with a provider": ({"model": "openai/gpt-image-2.5-large"}, {}, ["model"]),
    "model empty": ({"model": ""}, {}, ["model"]),
    "model listed": ({"model": "dall-e-3"}, {}, []),
    "previews without a stream": ({"partial_images": 2}, {}, ["partial_images"]),
    "stream as text": ({"stream": "false", "partial_images": "0"}, {}, ["stream", "partial_images"]),
    "words": (
        {"background": "Opaque", "style": "", "quality": "AUTO"},
        {},
        ["background", "style", "quality"],
    ),
    "response format": ({"response_format": "base64"}, {}, ["response_format"]),
    "without effect": ({"svg": [], "frame_count": "two"}, {}, ["svg", "frame_count"]),
    "user as number": ({"user": 42}, {}, ["user"]),
    "low quality": ({"quality": "low"}, {"num_steps": 2}, []),
    "medium quality": ({"quality": "standard"}, {"num_steps": 4}, []),
    "high quality": ({"quality": "hd"}, {"num_steps": 8}, []),
    "xhigh quality": ({"quality": "xhigh"}, {"num_steps": 12}, []),
    "max quality": ({"quality": "max"}, {"num_steps": 16}, []),
    "quality beside steps": ({"quality": "high", "steps": 5}, {"num_steps": 5}, ["steps"]),
    "quality of a solver": ({"quality": "low", "solver": "plms"}, {"num_steps": 3, "solver": "plms"}, []),
}


@pytest.mark.parametrize(("fields", "changes", "adjusted"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_a_request_is_understood_and_the_answer_says_how(
    client: TestClient,
    backend: FakeBackend,
    fields: dict[str, object],
    changes: dict[str, Any],
    adjusted: list[str],
) -> None:
    body: dict[str, object] = {"prompt": "p", "seed": 0} | fields
    if "seed" in str(fields.get("extra_body")):
        del body["seed"]
    response = client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    assert backend.drawn[-1] == (replace(PLAIN, **changes), ImageFormat("png", 100))
    items = response.json()["usage"]["safelight"]["adjusted"]
    assert sorted(item["field"] for item in items) == sorted(adjusted)
    assert sorted((response.headers.get("x-safelight-adjusted") or "").split(", ")) == sorted(
        adjusted or [""]
    )
    assert all(item["note"] for item in items)
    strictly = client.post(ROUTE, json=body, headers=STRICT).status_code
    assert strictly == (200 if not adjusted else 404 if "model" in adjusted else 400)


def test_a_field_that_is_null_asks_for_nothing(client: TestClient) -> None:
    assert adjustments(client, {"lora": None, "steps": None, "extra_body": None}) == {}


def test_an_adjustment_has_what_was_asked_and_what_was_used(client: TestClient) -> None:
    fields = {"size": "1536x1024", "n": "2", "steps": 8, "guidence_scale": 3, "lora": {"a": 1}}
    assert adjustments(client, fields) == {
        "size": ("1536x1024", "16x8", "the nearest size that is served"),
        "n": ("2", 2, "read as a whole number"),
        "steps": (8, 8, "read as num_inference_steps"),
        "guidence_scale": (3, None, "not a field of this request; did you mean guidance_scale?"),
        "lora": ({"a": 1}, None, "not a field of this request"),
    }


def test_a_seed_of_minus_one_is_random_and_reported(client: TestClient, backend: FakeBackend) -> None:
    seeds = [adjustments(client, {"seed": seed})["seed"][1] for seed in (-1, "-1", -1.0)]
    assert seeds == [params.seed for params, _ in backend.drawn[-3:]]
    assert len(set(seeds)) == 3


def test_output_formats_have_other_names(client: TestClient, backend: FakeBackend) -> None:
    fields = {"prompt": "p", "format": "JPG", "output_quality": "40"}
    assert client.post(ROUTE, json=fields).status_code == 200
    assert backend.drawn[-1][1] == ImageFormat("jpeg", 40)


def test_several_images_by_another_name(client: TestClient) -> None:
    assert len(client.post(ROUTE, json={"prompt": "p", "batch_size": 3}).json()["data"]) == 3


# What is refused all the same: what cannot be given, and what has no meaning.
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"background": "transparent"}, "background", "opaque, so transparent cannot be given"),
    ({"background": "plaid"}, "background", "one of auto, opaque"),
    ({"output_format": "gif"}, "output_format", "cannot be given"),
    ({"output_format": "SVG"}, "output_format", "cannot be given"),
    ({"style": "noir"}, "style", "one of vivid, natural"),
    ({"quality": "ultra"}, "quality", "one of low, medium"),
    ({"quality": 3}, "quality", "one of low, medium"),
    ({"size": "0x8"}, "size", "between 1 and 16384 pixels; got 0x8."),
    ({"size": "-8x8"}, "size", "between 1 and 16384 pixels"),
    ({"size": "16385x8"}, "size", "between 1 and 16384 pixels"),
    ({"size": "8x99999999999999999999"}, "size", "between 1 and 16384 pixels"),
    ({"size": "big"}, "size", "WIDTHxHEIGHT or auto"),
    ({"width": 99999, "height": 8}, "width", "between 1 and 16384 pixels"),
    ({"height": -1}, "height", "between 1 and 16384 pixels"),
    ({"size": "8x8", "width": 0}, "width", "between 1 and 16384 pixels"),
    ({"n": 11}, "n", "between 1 and 10"),
    ({"n": "11"}, "n", "between 1 and 10"),
    ({"n": 1.5}, "n", "an integer"),
    ({"n": True}, "n", "an integer"),
    ({"num_images": "many"}, "num_images", 'between 1 and 10; got "many".'),
    ({"num_inference_steps": "20.5"}, "num_inference_steps", "an integer"),
    ({"num_inference_steps": 8, "steps": "x"}, "steps", "between 1 and 200"),
    ({"guidance_scale": "nan"}, "guidance_scale", "a number"),
    ({"cfg_scale": 99}, "cfg_scale", "between 0.0 and 20.0; got 99."),
    ({"eta": 2}, "eta", "between 0.0 and 1.0"),
    ({"solver": "magic"}, "solver", "euler, ddim"),
    ({"timestep_spacing": "odd"}, "timestep_spacing", "trailing, karras"),
    ({"guidance_interval": "all"}, "guidance_interval", "a list of 2"),
    ({"seed": 1.5}, "seed", "an integer"),
    ({"seed": "lucky"}, "seed", "an integer"),
    ({"extra_body": {"n": 99}}, "extra_body.n", "between 1 and 10"),
    ({"prompt": 5}, "prompt", "a string"),
    ({"prompt": "x" * 32_001}, "prompt", "32001 characters"),
]


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    REFUSED,
    ids=[f"{param}={str(fields)[:40]}" for fields, param, _ in REFUSED],
)
def test_what_has_no_meaning_is_refused_by_name(
    client: TestClient, fields: dict[str, object], param: str, allowed: str
) -> None:
    response = client.post(ROUTE, json={"prompt": "p"} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert allowed in error["message"]


@pytest.mark.parametrize("prompt", ["x" * 32_000, "🍎" * 32_000])
def test_a_long_prompt_is_taken(client: TestClient, backend: FakeBackend, prompt: str) -> None:
    assert client.post(ROUTE, json={"prompt": prompt}).status_code == 200
    assert backend.drawn[-1][0].prompt == prompt


def test_many_unknown_fields_are_counted(client: TestClient) -> None:
    items = adjustments(client, {f"field {k}": "x" * 1000 for k in range(MAX_UNKNOWN + 30)})
    assert len(items) == MAX_UNKNOWN + 1
    assert items["..."][2] == "30 more that are not fields of this request"
    assert items["field 0"][0] == f"{'x' * 200}..."


def test_a_field_name_cannot_break_the_header(client: TestClient) -> None:
    response = client.post(ROUTE, json={"prompt": "p", "a\r\nset-cookie: b": 1, "ü": 2, "n" * 100: 3})
    assert response.headers["x-safelight-adjusted"] == f"a??set-cookie??b, ?, {'n' * 64}"


def test_strictness_is_a_header_or_a_setting(client: TestClient, backend: FakeBackend) -> None:
    body = {"prompt": "p", "steps": 8}
    for header, status in {"1": 400, "TRUE": 400, "0": 200, "": 200}.items():
        assert client.post(ROUTE, json=body, headers={"x-safelight-strict": header}).status_code == status
    with TestClient(build_gateway(backend, MODEL, Settings(strict=True))) as strict:
        check_answers(strict)
        assert strict.post(ROUTE, json=body).json()["error"]["code"] == "unknown_parameter"
        assert strict.post(ROUTE, json=body, headers={"x-safelight-strict": "0"}).status_code == 400
        assert strict.get("/v1/models/gpt-image-1-mini").status_code == 404
        schema = strict.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]
        assert schema["content"]["application/json"]["schema"]["additionalProperties"] is False


def test_the_operator_names_further_models(backend: FakeBackend) -> None:
    settings = Settings(aliases="flux-dev, sdxl*")
    with TestClient(build_gateway(backend, MODEL, settings)) as client:
        check_answers(client)
        for name in ("flux-dev", "sdxl-turbo"):
            response = client.post(ROUTE, json={"prompt": "p", "model": name})
            assert response.json()["usage"]["safelight"]["model"] == "fake-8"
            assert client.post(ROUTE, json={"prompt": "p", "model": name}, headers=STRICT).status_code == 200
        assert adjustments(client, {"model": "flux-dev"}) == {}
        [model] = client.get("/v1/models").json()["data"]
        assert model["aliases"] == ["gpt-image-1", "dall-e-2", "dall-e-3", "flux-dev", "sdxl*"]
        refusal = client.post(ROUTE, json={"prompt": "p", "model": "flux"})
        assert refusal.status_code == 404
        assert all(
            name in refusal.json()["error"]["message"] for name in ("fake-8", "flux-dev", "gpt-image-*")
        )
    with TestClient(build_gateway(backend, MODEL, Settings(aliases="*"))) as client:
        assert client.post(ROUTE, json={"prompt": "p", "model": "anything"}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "user"),
    [
        ({"user": "ann"}, "49915e0d7d4b402e"),
        ({"safety_identifier": "ann", "user": "bob"}, "49915e0d7d4b402e"),
        ({"safety_identifier": "", "user": "ann"}, "49915e0d7d4b402e"),
        ({"user": ""}, ""),
        ({}, ""),
    ],
)
def test_the_accounting_knows_users_by_a_hash(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], user: str
) -> None:
    records: list[UsageRecord] = []
    put = Outbox.put

    def record_and_put(outbox: Outbox, record: UsageRecord) -> None:
        records.append(record)
        put(outbox, record)

    monkeypatch.setattr(Outbox, "put", record_and_put)
    client.post(ROUTE, json={"prompt": "p"} | fields)
    assert [record.user for record in records] == [user]
    [request] = client.get("/v1/accounting?latest=1").json()["latest"]
    assert request["user"] == user


def test_the_quality_of_the_answer_is_that_of_the_steps(client: TestClient) -> None:
    def quality(**fields: object) -> str:
        answer = client.post(ROUTE, json={"prompt": "p"} | fields).json()
        assert answer["background"] == "opaque"
        return str(answer["quality"])

    steps = {1: "low", 3: "low", 4: "medium", 7: "medium", 8: "high", 12: "xhigh", 200: "max"}
    assert {number: quality(num_inference_steps=number) for number in steps} == steps
    assert quality(quality="high") == "high"


def adjustments(client: TestClient, fields: Mapping[str, object]) -> dict[str, tuple[Any, Any, str]]:
    """What was asked, what was used and the note, by the adjusted fields of a request with `fields`."""
    response = client.post(
        ROUTE, content=json.dumps({"prompt": "p", **fields}), headers={"content-type": "application/json"}
    )
    items = response.json()["usage"]["safelight"]["adjusted"]
    return {item["field"]: (item["asked"], item["used"], item["note"]) for item in items}
