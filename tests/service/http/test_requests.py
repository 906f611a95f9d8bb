"""Image requests: fields, defaults, usage, and refusals."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.pipeline.catalog.model_info import MAX_SEED
from safelight.service.http.translation import make_usage
from safelight.service.messages import DecodeResult, ImageFormat, ImageUsage
from tests.fakes import MODEL, USAGE, FakeBackend, fake_image, make_params
from tests.service.conftest import ROUTE

JSON = {"content-type": "application/json"}
DEFAULT = make_params(prompt="a red apple", seed=7)


def test_a_minimal_request_gets_the_models_defaults(client: TestClient, backend: FakeBackend) -> None:
    response = client.post(ROUTE, json={"prompt": "a red apple", "seed": 7})
    assert response.status_code == 200
    body = response.json()
    assert base64.b64decode(body["data"][0]["b64_json"]) == fake_image(DEFAULT, ImageFormat("png", 100))
    assert (body["output_format"], body["background"], body["quality"]) == ("png", "opaque", "medium")
    assert "x-safelight-adjusted" not in response.headers
    assert body["size"] == "8x8"
    assert isinstance(body["created"], int)


def test_every_extension_reaches_the_image(client: TestClient, backend: FakeBackend) -> None:
    fields = {
        "prompt": "a red apple",
        "negative_prompt": "blue",
        "num_inference_steps": 9,
        "guidance_scale": 2,
        "solver": "ddim",
        "timestep_spacing": "karras",
        "eta": 0.5,
        "guidance_interval": [0.25, 1],
        "guidance_stride": 3,
        "guidance_rescale": 0.7,
        "seed": MAX_SEED,
        "size": "16x8",
        "output_format": "webp",
        "output_compression": 40,
        "n": 2,
    }
    assert client.post(ROUTE, json=fields).status_code == 200
    expected = make_params(
        prompt="a red apple",
        negative_prompt="blue",
        num_steps=9,
        guidance_scale=2.0,
        solver="ddim",
        seed=MAX_SEED,
        width=16,
        timestep_spacing="karras",
        eta=0.5,
        guidance_interval=(0.25, 1.0),
        guidance_stride=3,
        guidance_rescale=0.7,
    )
    calls = backend.drawn[-2:]
    assert [params.image_index for params, _ in calls] == [0, 1]
    assert calls[0] == (expected, ImageFormat("webp", 40))


def test_usage_is_openais_with_safelights_cost(client: TestClient) -> None:
    usage = client.post(ROUTE, json={"prompt": "a blorp", "seed": 7, "n": 2}).json()["usage"]
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] == 6
    assert usage["input_tokens_details"]["image_tokens"] == 0
    assert usage["output_tokens"] == 34
    assert usage["output_tokens_details"] == {"image_tokens": 34, "text_tokens": 0}
    assert usage["total_tokens"] == 40
    cost = usage["safelight"]
    assert cost.pop("seconds") > 0
    assert cost == {
        "model": "fake-8",
        "seeds": [7, 7],
        "solver": "euler",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "timestep_spacing": "trailing",
        "eta": 0.0,
        "guidance_interval": [0.0, 1.0],
        "guidance_stride": 1,
        "guidance_rescale": 0.0,
        "edit": None,
        "previews": 0,
        "nfe": 10,
        "rows": 18,
        "flops": 4260,
        "device_seconds": {"encode": 0.5, "denoise": 3.5, "decode": 0.75},
        "queue_seconds": 1.375,
        "store_seconds": 0.0,
        "stored_bytes": 0,
        "truncated": False,
        "unknown_words": ["blorp"],
        "prompt_syntax": ["[x]"],
        "corrected_words": {"aple": "apple"},
        "batch_invariant": True,
        "adjusted": [],
        "promised_seconds": None,
        "forecast_seconds": None,
    }


def test_an_absent_seed_is_random_and_reported(client: TestClient, backend: FakeBackend) -> None:
    seeds = [
        client.post(ROUTE, json={"prompt": "p"}).json()["usage"]["safelight"]["seeds"][0] for _ in range(3)
    ]
    assert len(set(seeds)) == 3
    assert seeds == [params.seed for params, _ in backend.drawn[-3:]]


def test_null_means_the_default(client: TestClient, backend: FakeBackend) -> None:
    nulls = dict.fromkeys(
        (
            "model",
            "n",
            "size",
            "seed",
            "solver",
            "guidance_scale",
            "negative_prompt",
            "stream",
            "quality",
            "user",
        )
    )
    assert client.post(ROUTE, json={"prompt": "p", **nulls}).status_code == 200


@pytest.mark.parametrize(("sent", "applied"), [(0, 1.0), (0.5, 1.0), (1, 1.0), (1.5, 1.5), (None, 4.0)])
def test_no_guidance_is_asked_for_as_in_diffusers(
    client: TestClient, backend: FakeBackend, sent: float | None, applied: float
) -> None:
    """Any scale up to 1 is off, so that the prompt counts; the answer says what was applied."""
    answer = client.post(ROUTE, json={"prompt": "p", "guidance_scale": sent, "seed": 0}).json()
    assert answer["usage"]["safelight"]["guidance_scale"] == applied
    assert backend.drawn[-1][0] == make_params(prompt="p", guidance_scale=applied, seed=0)


def test_zero_is_not_the_default(client: TestClient, backend: FakeBackend) -> None:
    fields = {"prompt": "p", "guidance_scale": 0, "seed": 0, "output_format": "jpeg", "output_compression": 0}
    assert client.post(ROUTE, json=fields).status_code == 200
    assert backend.drawn[-1] == (
        make_params(prompt="p", guidance_scale=1.0, seed=0),
        ImageFormat("jpeg", 0),
    )


@pytest.mark.parametrize("model", ["fake-8", "gpt-image-1", "dall-e-2", "dall-e-3"])
def test_the_model_has_openais_names_as_aliases(client: TestClient, model: str) -> None:
    response = client.post(ROUTE, json={"prompt": "p", "model": model})
    assert response.json()["usage"]["safelight"]["model"] == "fake-8"


def test_openais_other_fields_are_ignored(client: TestClient) -> None:
    ignored = {
        "quality": "high",
        "style": "vivid",
        "background": "opaque",
        "moderation": "low",
        "user": "u",
        "safety_identifier": "s",
        "complexity": "low",
        "svg": {"model": "m"},
        "frame_count": 2,
        "frame_duration_ms": 100,
        "partial_images": 0,
        "stream": False,
        "response_format": "b64_json",
    }
    assert client.post(ROUTE, json={"prompt": "p", **ignored}).status_code == 200


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "1 to 32000 characters"),
    ({"prompt": "  \n"}, "prompt", "not blank"),
    ({"prompt": "x" * 32001}, "prompt", "32000"),
    ({"prompt": 5}, "prompt", "string"),
    ({"prompt": None}, "prompt", "string"),
    ({"negative_prompt": "x" * 32001}, "negative_prompt", "at most 32000"),
    ({"size": "9x9"}, "size", "8x8, 16x8"),
    ({"size": "99999x8"}, "size", "8x8, 16x8"),
    ({"size": "big"}, "size", "WIDTHxHEIGHT or auto"),
    ({"size": "8x"}, "size", "WIDTHxHEIGHT or auto"),
    ({"size": 8}, "size", "WIDTHxHEIGHT or auto"),
    ({"num_inference_steps": 0}, "num_inference_steps", "between 1 and 200"),
    ({"num_inference_steps": 201}, "num_inference_steps", "between 1 and 200"),
    ({"num_inference_steps": "20"}, "num_inference_steps", "an integer"),
    ({"num_inference_steps": 20.5}, "num_inference_steps", "an integer"),
    ({"num_inference_steps": True}, "num_inference_steps", "an integer"),
    ({"guidance_scale": -0.1}, "guidance_scale", "between 0.0 and 20.0"),
    ({"guidance_scale": 20.1}, "guidance_scale", "between 0.0 and 20.0"),
    ({"guidance_scale": "4"}, "guidance_scale", "a number"),
    ({"guidance_scale": True}, "guidance_scale", "a number"),
    ({"n": 0}, "n", "between 1 and 10"),
    ({"n": 11}, "n", "between 1 and 10"),
    ({"solver": "magic"}, "solver", "euler, ddim"),
    ({"solver": "plms", "num_inference_steps": 2}, "num_inference_steps", "at least 3 for plms"),
    ({"timestep_spacing": "linspace", "num_inference_steps": 1}, "timestep_spacing", "trailing, karras"),
    ({"timestep_spacing": "odd"}, "timestep_spacing", "trailing, karras"),
    ({"eta": 0.5}, "eta", "ddim only"),
    ({"eta": 1.5, "solver": "ddim"}, "eta", "between 0.0 and 1.0"),
    ({"guidance_interval": [0.8, 0.2]}, "guidance_interval", "start <= end"),
    ({"guidance_interval": [0.2]}, "guidance_interval", "a list of 2, each a number between 0.0 and 1.0"),
    ({"guidance_interval": [0.2, 1.2]}, "guidance_interval", "a list of 2"),
    ({"guidance_interval": "all"}, "guidance_interval", "a list of 2"),
    ({"guidance_stride": 0}, "guidance_stride", "between 1 and 10"),
    ({"guidance_rescale": -0.1}, "guidance_rescale", "between 0.0 and 1.0"),
    ({"seed": -1}, "seed", f"between 0 and {MAX_SEED}"),
    ({"seed": MAX_SEED + 1}, "seed", f"between 0 and {MAX_SEED}"),
    ({"seed": 10**400}, "seed", f"between 0 and {MAX_SEED}"),
    ({"output_format": "gif"}, "output_format", "png, webp, jpeg"),
    ({"output_compression": 101}, "output_compression", "between 0 and 100"),
    ({"stream": "false"}, "stream", 'stream must be a boolean; got "false".'),
    ({"stream": 1}, "stream", "stream must be a boolean; got 1."),
    ({"partial_images": 4}, "partial_images", "partial_images must be an integer between 0 and 3; got 4."),
    ({"partial_images": "0"}, "partial_images", 'an integer between 0 and 3; got "0".'),
    ({"partial_images": False}, "partial_images", "an integer between 0 and 3; got false."),
    ({"response_format": "base64"}, "response_format", 'one of b64_json, url; got "base64".'),
    ({"response_format": ["url"]}, "response_format", 'one of b64_json, url; got ["url"].'),
    ({"n": [1] * 90}, "n", f"between 1 and 10; got [{'1, ' * 33}..."),
    ({"prompt": "x" * 32001}, "prompt", "not blank; got 32001 characters."),
    ({"quality": 3}, "quality", "one of low, medium, high"),
    ({"quality": "ultra"}, "quality", 'max, auto, standard, hd; got "ultra".'),
    ({"style": "noir"}, "style", "one of vivid, natural"),
    (
        {"background": "transparent"},
        "background",
        "opaque, so transparent cannot be given; allowed: one of auto",
    ),
    ({"background": "plaid"}, "background", "one of auto, opaque"),
    ({"frame_count": "two"}, "frame_count", "an integer"),
    ({"svg": []}, "svg", "an object"),
    ({"steps": 20}, "steps", "num_inference_steps"),
]


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    BAD_FIELDS,
    ids=[f"{param}={str(list(fields.values()))[:20]}" for fields, param, _ in BAD_FIELDS],
)
def test_a_strict_refusal_names_the_field_and_what_it_allows(
    client: TestClient, fields: dict[str, object], param: str | None, allowed: str
) -> None:
    body = fields if not fields or "prompt" in fields else {"prompt": "p", **fields}
    response = client.post(ROUTE, content=json.dumps(body), headers=JSON | {"x-safelight-strict": "1"})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert allowed in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("model", "is_strict"),
    [("gpt-5", False), ("../../etc", False), ("sdxl", True), ("", True), ("gpt-image-1-mini", True)],
)
def test_an_unknown_model_is_404(client: TestClient, model: str, is_strict: bool) -> None:
    headers = {"x-safelight-strict": "1"} if is_strict else {}
    response = client.post(ROUTE, json={"prompt": "p", "model": model}, headers=headers)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "fake-8" in error["message"]


NOT_JSON = {
    "empty": b"",
    "cut": b"{",
    "unclosed": b'{"prompt": "p"',
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "not utf-8": b'{"prompt": "\xff"}',
    "lone surrogate": rb'{"prompt": "\ud800"}',
    "deep": b"[" * 100_000,
    "nan in lower case": b'{"prompt": "p", "guidance_scale": nan}',
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_no_json_object_is_400(client: TestClient, body: bytes) -> None:
    response = client.post(ROUTE, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["param"], error["code"]) == (None, "invalid_json")
    assert "JSON" in error["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["guidance_scale", "seed", "n", "num_inference_steps"])
def test_infinities_and_not_a_number_are_refused(client: TestClient, field: str, value: str) -> None:
    response = client.post(
        ROUTE, content=f'{{"prompt": "p", "{field}": {value}}}', headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_body_not_declared_as_json_is_415(client: TestClient, kind: str) -> None:
    response = client.post(ROUTE, content=b'{"prompt": "p"}', headers={"content-type": kind})
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]
    assert client.post(ROUTE, content=b'{"prompt": "p"}').status_code == 415  # not declared at all


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"],
)
def test_every_json_content_type_is_accepted(client: TestClient, kind: str) -> None:
    assert client.post(ROUTE, content=b'{"prompt": "p"}', headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413(client: TestClient, declared: bool) -> None:
    body = b" " * (1 << 20) + b'{"prompt": "p"}'
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    content = body if declared else chunks
    response = client.post(ROUTE, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "1048576" in response.json()["error"]["message"]


def test_the_schema_lists_what_this_model_serves(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    fields = paths[ROUTE]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert fields["additionalProperties"] is True
    properties = fields["properties"]
    assert properties["size"]["anyOf"][0]["enum"] == ["auto", "8x8", "16x8"]
    assert properties["solver"]["anyOf"][0]["enum"] == list(MODEL.solvers)
    assert properties["seed"]["anyOf"][0]["maximum"] == MAX_SEED
    assert properties["moderation"]["description"].startswith("Accepted for OpenAI's clients and ignored")
    assert {"400", "404", "413", "415", "429", "503"} <= set(paths[ROUTE]["post"]["responses"])


VARIANT = replace(USAGE, denoise=replace(USAGE.denoise, is_batch_invariant=False))
TRUNCATED = replace(USAGE, text=replace(USAGE.text, truncated=True, unknown_words=("zzz", "blorp")))


@pytest.mark.parametrize(
    ("usages", "batch_invariant", "truncated", "unknown_words"),
    [
        ((USAGE, USAGE), True, False, ["blorp"]),
        ((USAGE, VARIANT), False, False, ["blorp"]),
        ((USAGE, TRUNCATED), True, True, ["blorp", "zzz"]),
        ((TRUNCATED, USAGE), True, True, ["zzz", "blorp"]),
    ],
)
def test_usage_tells_what_is_true_of_any_image(
    usages: tuple[ImageUsage, ...], batch_invariant: bool, truncated: bool, unknown_words: list[str]
) -> None:
    results = [DecodeResult(b"", usage) for usage in usages]
    cost = make_usage(results, [make_params()] * len(usages), MODEL, 1.0).safelight
    assert (cost.batch_invariant, cost.truncated, cost.unknown_words) == (
        batch_invariant,
        truncated,
        unknown_words,
    )


def test_a_text_that_was_cut_is_told_over_http(
    client: TestClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.USAGE", TRUNCATED)
    assert client.post(ROUTE, json={"prompt": "p"}).json()["usage"]["safelight"]["truncated"] is True
