"""`POST /v1/images/edits`: what clients may send, what reaches the backend, and what the answer says."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import Upload
from safelight.service.settings import Settings
from tests.fakes import MODEL, SOURCE, USAGE, FakeBackend
from tests.service.http.bad_bodies import BAD_BODIES, BAD_FORMS, FORM, TEXT_PART, multipart
from tests.service.http.uploads import BAD_FILES, SIDE, data_url, mask, photo, png
from tests.service.inprocess_backend import InProcessBackend

ROUTE = "/v1/images/edits"
JSON = {"content-type": "application/json"}


def post_form(client: TestClient, body: bytes, boundary: str = "; boundary=X") -> Any:
    return client.post(ROUTE, content=body, headers={"content-type": f"multipart/form-data{boundary}"})


def test_a_form_with_files_becomes_an_upload(client: TestClient, backend: FakeBackend) -> None:
    files = {"image": ("a.png", b"image", "image/png"), "mask": ("m.png", b"mask", "image/png")}
    fields = FORM | {"strength": "0.5", "n": "2", "seed": "7", "num_inference_steps": "8"}
    response = client.post(ROUTE, data=fields, files=files)
    assert response.status_code == 200, response.text
    assert backend.uploads == [Upload(b"image", b"mask", None, MODEL.sizes)]
    images = [params for params, _ in backend.drawn if params.seed == 7]
    assert [(image.image_index, image.width, image.height) for image in images] == [(0, 16, 8), (1, 16, 8)]
    edit = images[0].edit
    assert edit is not None and (edit.strength, edit.is_inpainting, images[0].steps_taken) == (0.5, True, 4)


IMAGE_FIELDS: dict[str, dict[str, Any]] = {
    "images of objects": {"images": [{"image_url": data_url(b"image")}]},
    "images of texts": {"images": [data_url(b"image")]},
    "an image": {"image": data_url(b"image", "image/webp")},
    "base64 alone": {"image": base64.b64encode(b"image").decode()},
    "broken into lines": {"image": base64.encodebytes(b"image").decode()},
    "a nested address": {"image": {"image_url": {"url": data_url(b"image")}}},
    "the brackets of a form": {"image[]": [data_url(b"image")]},
}


@pytest.mark.parametrize("name", IMAGE_FIELDS)
def test_json_may_hold_the_image_in_any_of_these_ways(
    name: str, client: TestClient, backend: FakeBackend
) -> None:
    response = client.post(ROUTE, json=FORM | IMAGE_FIELDS[name])
    assert response.status_code == 200, response.text
    assert backend.uploads == [Upload(b"image", None, None, MODEL.sizes)]


def test_json_may_hold_a_mask(client: TestClient, backend: FakeBackend) -> None:
    fields = {"image": data_url(b"image"), "mask": {"image_url": data_url(b"mask")}, "size": "8x8"}
    assert client.post(ROUTE, json=FORM | fields).status_code == 200
    assert backend.uploads == [Upload(b"image", b"mask", (8, 8), MODEL.sizes)]


@pytest.mark.parametrize("nothing", [None, [], [None]], ids=str)
def test_json_may_hold_nothing_where_an_image_may_be(
    nothing: object, client: TestClient, backend: FakeBackend
) -> None:
    fields = {"images": [data_url(b"image")], "image": nothing, "mask": nothing}
    assert client.post(ROUTE, json=FORM | fields).status_code == 200
    assert backend.uploads == [Upload(b"image", None, None, MODEL.sizes)]


@pytest.mark.parametrize("name", ["image", "image[]", "images", "image[0]"])
def test_a_file_may_have_any_of_these_names(name: str, client: TestClient, backend: FakeBackend) -> None:
    assert client.post(ROUTE, data=FORM, files={name: b"image"}).status_code == 200
    assert backend.uploads[0].image == b"image"


@pytest.mark.parametrize(
    ("has_mask", "strength"), [(False, 0.6), (True, 1.0)], ids=["without a mask", "with a mask"]
)
def test_the_default_strength(
    has_mask: bool, strength: float, client: TestClient, backend: FakeBackend
) -> None:
    files = {"image": b"image"} | ({"mask": b"mask"} if has_mask else {})
    client.post(ROUTE, data=FORM, files=files)
    edit = backend.drawn[-1][0].edit
    assert edit is not None and edit.strength == strength


def test_the_answer_says_what_became_of_the_upload_and_what_it_cost(
    client: TestClient, backend: FakeBackend
) -> None:
    answer = client.post(ROUTE, data=FORM | {"n": "2"}, files={"image": b"image"}).json()
    assert answer["size"] == "16x8"
    usage = answer["usage"]
    assert usage["safelight"]["edit"] == {
        "strength": 0.6, "inpainting": False, "steps_taken": 3, "uploaded_size": "33x16",
        "crop": [0, 0, 32, 16], "device_seconds": SOURCE.cost.device_seconds,
    }  # fmt: skip
    assert usage["safelight"]["device_seconds"]["decode"] == 2 * USAGE.decode.device_seconds + 0.5
    assert usage["safelight"]["flops"] == 2 * USAGE.flops + SOURCE.cost.flops
    assert usage["safelight"]["queue_seconds"] == 2 * USAGE.queue_seconds + SOURCE.cost.queue_seconds
    assert usage["input_tokens_details"] == {"text_tokens": 6, "image_tokens": 17}
    assert usage["input_tokens"] == 23 and usage["total_tokens"] == 23 + usage["output_tokens"]


def test_an_image_of_another_size_is_told(client: TestClient, backend: FakeBackend) -> None:
    """In the answer and in the header, beside what else was adjusted."""
    response = client.post(ROUTE, data=FORM | {"steps": "3"}, files={"image": b"image"})
    assert response.headers["x-safelight-adjusted"] == "steps, image"
    item = response.json()["usage"]["safelight"]["adjusted"][1]
    assert (item["field"], item["asked"], item["used"]) == ("image", "33x16", "16x8")
    assert item["note"] == "cut to the part from 0,0 to 32,16 and resampled to a size of the model"


def test_a_strength_that_leaves_too_few_steps_is_raised_and_told(
    client: TestClient, backend: FakeBackend
) -> None:
    """To the least that `plms` can do with; the strict reading refuses it."""
    fields = {"prompt": "p", "image": data_url(b"image"), "solver": "plms", "num_inference_steps": 10}
    response = client.post(ROUTE, json=fields | {"strength": 0.1})
    edit = backend.drawn[-1][0].edit
    assert edit is not None and (edit.strength, backend.drawn[-1][0].steps_taken) == (0.2, 2)
    adjusted = {item["field"]: item for item in response.json()["usage"]["safelight"]["adjusted"]}
    assert (adjusted["strength"]["asked"], adjusted["strength"]["used"]) == (0.1, 0.2)
    response = client.post(ROUTE, json=fields | {"strength": 0.1}, headers={"x-safelight-strict": "1"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "strength")


def test_a_form_has_numbers_also_in_the_strict_reading(client: TestClient, backend: FakeBackend) -> None:
    strict = {"x-safelight-strict": "1"}
    fields = FORM | {"n": "2", "guidance_scale": "2.5", "strength": "0.5"}
    response = client.post(ROUTE, data=fields, files={"image": b"image"}, headers=strict)
    assert response.status_code == 200, response.text
    response = client.post(ROUTE, data=fields | {"steps": "3"}, files={"image": b"image"}, headers=strict)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "steps")


def test_a_generation_says_nothing_of_an_edit(client: TestClient) -> None:
    usage = client.post("/v1/images/generations", json=FORM).json()["usage"]
    assert usage["safelight"]["edit"] is None
    assert usage["input_tokens_details"]["image_tokens"] == 0


WRAPPED: dict[str, tuple[dict[str, Any], float, list[tuple[str, object]]]] = {
    "alone": ({"extra_body": {"strength": "0.25"}}, 0.25, [("extra_body.strength", 0.25)]),
    "by its other name": (
        {"extra_json": {"denoising_strength": 0.5, "input_fidelity": "high"}},
        0.5,
        [("extra_json.denoising_strength", 0.5)],
    ),
    "beside the field": (
        {"strength": 0.75, "extra_body": {"strength": 0.5}},
        0.75,
        [("extra_body.strength", None)],
    ),
    "null": ({"extra_body": {"strength": None}}, 0.6, []),
}


@pytest.mark.parametrize(("fields", "strength", "adjusted"), WRAPPED.values(), ids=WRAPPED)
def test_strength_is_read_in_a_literal_extra_body(
    client: TestClient,
    backend: FakeBackend,
    fields: dict[str, Any],
    strength: float,
    adjusted: list[tuple[str, object]],
) -> None:
    body = FORM | {"image": data_url(b"image")} | fields
    response = client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    edit = backend.drawn[-1][0].edit
    assert edit is not None and edit.strength == strength
    items = response.json()["usage"]["safelight"]["adjusted"]
    assert [(item["field"], item["used"]) for item in items if item["field"] != "image"] == adjusted
    assert ("strength" in response.headers["x-safelight-adjusted"]) == bool(adjusted)
    strictly = client.post(ROUTE, json=body, headers={"x-safelight-strict": "1"})
    assert (strictly.status_code, strictly.json()["error"]["param"]) in {
        (400, "extra_body"),
        (400, "extra_json"),
    }


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_by_its_field(name: str, client: TestClient, backend: FakeBackend) -> None:
    body, status, param = BAD_BODIES[name]
    response = client.post(ROUTE, content=body, headers=JSON)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
    assert backend.uploads == []


@pytest.mark.parametrize(
    ("fields", "is_valid"),
    [
        ({"image": "QQ=="}, True),
        ({"images": ["QQ=="], "mask": {"image_url": "QQ=="}}, True),
        ({"image": None, "images": [{"image_url": "QQ=="}]}, True),
        ({"image": ["QQ=="], "strength": "0.5", "input_fidelity": ""}, True),
        ({"image": "QQ==", "mask": [None]}, True),
        ({"image": "QQ==", "stream": 1, "response_format": "b64_json"}, True),
        ({}, False),
        ({"image": None}, False),
        ({"image": [None]}, False),
        ({"image": "QQ==", "images": ["QQ=="]}, False),
        ({"image": 3}, False),
        ({"image": "QQ==", "strength": "0_5"}, False),
        ({"image": "QQ==", "denoising_strength": 2}, False),
        ({"image": "QQ==", "stream": "true", "response_format": "URL"}, False),
    ],
)
def test_the_schema_says_which_bodies_are_read(
    fields: dict[str, Any], is_valid: bool, client: TestClient
) -> None:
    body = client.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]
    validator = Draft202012Validator(body["content"]["application/json"]["schema"])
    assert validator.is_valid(FORM | fields) == is_valid
    assert client.post(ROUTE, json=FORM | fields).status_code == (200 if is_valid else 400)


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_is_refused(name: str, client: TestClient, backend: FakeBackend) -> None:
    body, says = BAD_FORMS[name]
    response = post_form(client, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_json"
    assert says in response.json()["error"]["message"]
    assert backend.uploads == []


def test_a_file_in_place_of_a_text_is_read_or_refused(client: TestClient, backend: FakeBackend) -> None:
    response = client.post(ROUTE, files={"image": b"image", "prompt": "äpple".encode()})
    assert response.status_code == 200 and backend.drawn[-1][0].prompt == "äpple"
    response = client.post(ROUTE, data=FORM, files={"image": b"image", "seed": b"\xff\xfe"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "seed")


def test_a_deeply_nested_text_is_refused(client: TestClient) -> None:
    response = client.post(ROUTE, data=FORM | {"n": "[" * 100_000}, files={"image": b"image"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


def test_a_form_without_a_boundary_is_refused(client: TestClient) -> None:
    assert "boundary" in post_form(client, multipart([TEXT_PART]), "").json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png", ""])
def test_another_content_type_is_refused(kind: str, client: TestClient) -> None:
    response = client.post(ROUTE, content=b"x", headers={"content-type": kind})
    assert response.status_code == 415
    assert "multipart/form-data" in response.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused(backend: FakeBackend) -> None:
    with TestClient(build_gateway(backend, MODEL, Settings(max_upload_bytes=1000))) as client:
        assert client.post(ROUTE, data=FORM, files={"image": bytes(1001)}).status_code == 413
        assert client.post(ROUTE, json=FORM | {"image": data_url(bytes(900))}).status_code == 413
        assert client.post(ROUTE, data=FORM, files={"image": bytes(500)}).status_code == 200


def test_an_upload_that_cannot_be_edited_is_the_clients_fault(client: TestClient) -> None:
    response = client.post(ROUTE, data=FORM, files={"image": b"bad"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "image"


@pytest.fixture(scope="module")
def real() -> Iterator[TestClient]:
    """A gateway over the stages of the model `tiny`."""
    model = find_model("tiny")
    pipeline = InProcessPipeline(model, Settings(model="tiny"))
    pipeline.wait()
    with TestClient(build_gateway(InProcessBackend(pipeline), model, Settings(model="tiny"))) as client:
        yield client
    pipeline.close()


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_answered_through_the_stages(name: str, real: TestClient) -> None:
    bad = BAD_FILES[name]()
    files = {"image": bad.image} | ({} if bad.mask is None else {"mask": bad.mask})
    response = real.post(ROUTE, data=FORM | {"num_inference_steps": "1"}, files=files)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (bad.param, "invalid_request_error")
    assert bad.says in error["message"]


def edit(client: TestClient, **fields: Any) -> tuple[dict[str, Any], np.ndarray, bytes]:
    """The usage, the pixels and the file of an edit of `photo`."""
    body = FORM | {"image": data_url(png()), "num_inference_steps": 4, "seed": 3} | fields
    response = client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    file = base64.b64decode(response.json()["data"][0]["b64_json"])
    return response.json()["usage"]["safelight"], np.asarray(Image.open(io.BytesIO(file))), file


def test_an_inpainting_keeps_every_pixel_outside_the_mask(real: TestClient) -> None:
    usage, pixels, file = edit(real, mask=data_url(png(mask())))
    source = np.asarray(photo())
    assert np.array_equal(pixels[:, :32], source[:, :32])
    assert np.abs(pixels[:, 32:].astype(int) - source[:, 32:]).mean() > 10.0
    assert (usage["nfe"], usage["edit"]["inpainting"]) == (4, True)
    exact = json.loads(Image.open(io.BytesIO(file)).info["safelight"])
    assert (exact["strength"], exact["inpainting"], exact["size"]) == (1.0, True, f"{SIDE}x{SIDE}")


def test_only_the_steps_that_are_taken_are_charged(real: TestClient) -> None:
    whole, part = edit(real, strength=1)[0], edit(real, strength=0.5)[0]
    assert (whole["nfe"], part["nfe"], part["edit"]["steps_taken"]) == (4, 2, 2)
    assert part["num_inference_steps"] == 4


def test_the_same_edit_has_the_same_bytes_and_full_strength_is_a_generation(real: TestClient) -> None:
    assert edit(real, strength=0.5)[2] == edit(real, strength=0.5)[2]
    body = FORM | {"num_inference_steps": 4, "seed": 3}
    generated = real.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(generated))))
    assert np.array_equal(edit(real, strength=1)[1], pixels)
