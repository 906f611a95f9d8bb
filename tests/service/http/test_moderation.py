"""The operator's filters over HTTP: what is refused, what that costs, and what the service says of them."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from safelight.service.errors import ImageRefused, StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import DenoiseResult, ImageFormat, PreviewLatents, RequestContext
from safelight.service.moderation.image_classifier import BadClassifier, ImageClassifier, load_classifier
from safelight.service.settings import Settings
from safelight.service.stages.decode import DecodeStage
from tests.fakes import MODEL, USAGE, FakeBackend, FakeDecoder, make_params
from tests.service.conftest import ROUTE
from tests.service.http.uploads import data_url, photo, png

DENIED = "A Gr\u043ebnik!"  # with a Cyrillic letter
Make = Callable[..., TestClient]


@pytest.fixture
def make_client(tmp_path: Path) -> Make:
    def make(backend: FakeBackend, **settings: Any) -> TestClient:
        words = tmp_path / "words.txt"
        words.write_text("grobnik\n", encoding="utf-8")
        return TestClient(build_gateway(backend, MODEL, Settings(denied_words_file=str(words), **settings)))

    return make


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt": (ROUTE, {"prompt": DENIED}),
    "a negative prompt": (ROUTE, {"prompt": "apple", "negative_prompt": DENIED}),
    "a stream": (ROUTE, {"prompt": DENIED, "stream": True}),
    "an edit": ("/v1/images/edits", {"prompt": DENIED, "image": data_url(png(photo()))}),
    "a streamed edit": (
        "/v1/images/edits",
        {"prompt": DENIED, "image": data_url(png(photo())), "stream": True},
    ),
    "AUTOMATIC1111's API": ("/sdapi/v1/txt2img", {"prompt": DENIED}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_denied_words_are_refused_before_anything_is_spent(make_client: Make, name: str) -> None:
    backend = FakeBackend()
    client = make_client(backend)
    route, body = REQUESTS[name]
    response = client.post(route, json=body)
    assert response.status_code == 400
    if route.startswith("/v1"):
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "content_policy_violation")
        assert error["param"] == ("negative_prompt" if "negative_prompt" in body else "prompt")
        assert "nik" not in error["message"]
        assert response.headers["x-should-retry"] == "false"
    assert backend.calls == [] and backend.uploads == []
    line = 'safelight_requests_total{code="content_policy_violation",model="fake-8",outcome="refused"} 1.0'
    assert line in client.get("/metrics").text
    [request] = client.get("/v1/accounting?latest=1").json()["latest"]
    assert (request["outcome"], request["code"]) == ("refused", "content_policy_violation")


def test_other_words_are_drawn(make_client: Make) -> None:
    client = make_client(FakeBackend())
    assert client.post(ROUTE, json={"prompt": "grobniks", "negative_prompt": "ugly"}).status_code == 200


def test_an_image_that_is_refused_is_a_refused_request() -> None:
    client = TestClient(build_gateway(FakeBackend(ImageRefused()), MODEL, Settings()))
    response = client.post(ROUTE, json={"prompt": "apple"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        400,
        "image_generation_user_error",
        "moderation_blocked",
        None,
    )
    line = 'safelight_requests_total{code="moderation_blocked",model="fake-8",outcome="refused"} 1.0'
    assert line in client.get("/metrics").text


def test_a_warm_up_image_that_is_refused_shows_that_the_stages_work() -> None:
    backend = FakeBackend(*(ImageRefused() for _ in range(100)))
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        while client.get("/readyz").status_code != 200:
            assert len(backend.calls) < 2, "it was tried again"


@pytest.mark.parametrize(("filters_words", "classifier"), [(True, ""), (False, "a.b:c"), (False, "")])
def test_the_models_say_what_is_filtered(make_client: Make, filters_words: bool, classifier: str) -> None:
    if filters_words:
        client = make_client(FakeBackend(), image_classifier=classifier)
    else:
        client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(image_classifier=classifier)))
    expected = {"prompts": filters_words, "images": bool(classifier)}
    assert client.get("/v1/models").json()["data"][0]["moderation"] == expected
    assert client.get(f"/v1/models/{MODEL.id}").json()["moderation"] == expected


def make_dark_classifier() -> ImageClassifier:
    """Refuses images that are black at their first pixel, and fails for grey ones."""

    def classify(pixels: np.ndarray) -> str | None:
        if pixels[0, 0, 0] == 128:
            raise RuntimeError("no weights")
        return "dark" if pixels[0, 0, 0] == 0 else None

    return classify


make_number = int


@pytest.fixture
def stage() -> Any:
    path = f"{__name__}:make_dark_classifier"
    stage = DecodeStage(
        FakeDecoder,  # type: ignore[arg-type]
        lambda pixels, output, params, model: b"image",
        lambda pixels, output, is_edit: b"preview",
        make_classifier=lambda: load_classifier(path),
    )
    yield stage
    stage.close()


def pixels(value: int) -> Any:
    return np.full((8, 8, 3), value, dtype=np.uint8)


def decode(stage: DecodeStage, value: int) -> bytes:
    denoised = DenoiseResult(pixels(value), USAGE.text, USAGE.encode, USAGE.denoise)
    return asyncio.run(stage.decode(denoised, make_params(), ImageFormat())).image


def test_the_stage_asks_the_classifier_about_every_image(stage: DecodeStage) -> None:
    assert decode(stage, 255) == b"image"
    with pytest.raises(ImageRefused):
        decode(stage, 0)
    with pytest.raises(StageFailed, match="could not be classified"):
        decode(stage, 128)
    assert decode(stage, 255) == b"image"


def test_a_refused_image_is_charged_to_its_request(stage: DecodeStage) -> None:
    denoised = DenoiseResult(pixels(0), USAGE.text, USAGE.encode, USAGE.denoise)
    with pytest.raises(ImageRefused):
        asyncio.run(stage.decode(denoised, make_params(), ImageFormat(), RequestContext("record")))
    [event] = stage.meter.collect_report("s", 0, stage.status()).events
    assert (event.record_id, event.amounts.flops) == ("record", 20)


def test_a_preview_that_is_refused_is_dropped(stage: DecodeStage) -> None:
    for value, expected in ((255, b"preview"), (0, None), (128, None)):
        channels: Any = np.transpose(pixels(value), (2, 0, 1))
        latents = PreviewLatents("image", 0, channels, 5.0)
        preview = asyncio.run(stage.decode_preview(latents, ImageFormat()))
        assert (preview and preview.image) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module:make", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        (f"{__name__}:make_number", "returned int"),
    ],
)
def test_a_path_that_leads_to_no_classifier_is_an_error(path: str, message: str) -> None:
    with pytest.raises(BadClassifier, match=message):
        load_classifier(path)


def test_the_refusal_is_json_that_clients_of_openai_know() -> None:
    body = json.dumps(ImageRefused().body())
    assert "moderation_blocked" in body
