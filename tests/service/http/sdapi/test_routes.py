"""`/sdapi/v1` with the payloads of the programs that speak it, and what they read of the answers.

Each payload is written down from the program's own code, which the test names.
"""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine.image_metadata import parameters_text
from safelight.service.errors import QueueFull, StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.http.sdapi.samplers import SAMPLERS
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import ImageFormat
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend, fake_image, make_params
from tests.service.inprocess_backend import InProcessBackend

TXT2IMG = "/sdapi/v1/txt2img"
# SillyTavern, public/scripts/extensions/stable-diffusion/index.js, generateAutoImage.
SILLY_TAVERN: dict[str, Any] = {
    "url": "http://localhost:8000",
    "auth": "",
    "prompt": "best quality, a red apple",
    "negative_prompt": "lowres, bad anatomy",
    "sampler_name": "DPM++ 2M Karras",
    "scheduler": "karras",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "hr_additional_prompt": "",
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": -1,
    "override_settings": {
        "CLIP_stop_at_last_layers": 1,
        "sd_vae": "Automatic",
        "forge_additional_modules": [],
    },
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
# LibreChat, api/app/clients/tools/structured/StableDiffusion.js.
LIBRE_CHAT = {
    "prompt": "a red apple",
    "negative_prompt": "blurry",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 1024,
    "height": 1024,
}
# Open WebUI, backend/open_webui/routers/images.py, image_generations.
OPEN_WEBUI = {"prompt": "a red apple", "batch_size": 2, "width": 512, "height": 512, "steps": 50}


def draw(client: TestClient, fields: dict[str, Any]) -> tuple[list[bytes], dict[str, Any], dict[str, Any]]:
    """The images, and the fields `info` and `parameters`."""
    response = client.post(TXT2IMG, json=fields)
    assert response.status_code == 200, response.text
    body = response.json()
    return [base64.b64decode(image) for image in body["images"]], json.loads(body["info"]), body["parameters"]


def test_sillytavern_draws(client: TestClient, backend: FakeBackend) -> None:
    images, info, _ = draw(client, SILLY_TAVERN)
    params, output = backend.drawn[-1]
    assert images == [fake_image(params, output)]
    assert params == make_params(
        prompt="best quality, a red apple",
        negative_prompt="lowres, bad anatomy",
        num_steps=20,
        guidance_scale=7.0,
        timestep_spacing="karras",
        seed=info["seed"],
    )
    assert output == ImageFormat("png", 100)


def test_librechat_draws_and_reads_the_info(client: TestClient, backend: FakeBackend) -> None:
    _, info, _ = draw(client, LIBRE_CHAT)
    params, _ = backend.drawn[-1]
    assert (params.num_steps, params.guidance_scale) == (22, 4.5)
    assert info["seed"] == params.seed
    assert info["infotexts"] == [parameters_text(params, MODEL.id)]


def test_open_webui_draws(client: TestClient, backend: FakeBackend) -> None:
    images, info, _ = draw(client, OPEN_WEBUI)
    assert len(images) == 2
    assert [params.num_steps for params, _ in backend.drawn[-2:]] == [50, 50]
    assert len(info["all_seeds"]) == len(info["infotexts"]) == 2


def test_open_webui_finds_the_model(client: TestClient) -> None:
    """Its `get_models` and `set_image_model` read title and name, and post the options back."""
    (model,) = client.get("/sdapi/v1/sd-models").json()
    assert model["title"] == model["model_name"] == MODEL.id
    options = client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == MODEL.id
    response = client.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "other"})
    assert (response.status_code, response.json()) == (200, None)
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == MODEL.id


def test_sillytavern_reads_names(client: TestClient) -> None:
    names = {
        route: [entry["name"] for entry in client.get(f"/sdapi/v1/{route}").json()]
        for route in ("samplers", "schedulers", "upscalers", "latent-upscale-modes")
    }
    assert names == {
        "samplers": ["Euler", "DDIM", "PLMS"],
        "schedulers": ["automatic", "trailing", "karras"],
        "upscalers": ["None"],
        "latent-upscale-modes": [],
    }
    for route in ("sd-vae", "loras", "hypernetworks", "prompt-styles", "face-restorers"):
        assert client.get(f"/sdapi/v1/{route}").json() == []


def test_every_listed_sampler_is_drawn_by_the_solver_that_it_names(
    client: TestClient, backend: FakeBackend
) -> None:
    for sampler in client.get("/sdapi/v1/samplers").json():
        _, info, _ = draw(client, {"prompt": "p", "steps": 9, "sampler_name": sampler["name"]})
        assert [backend.drawn[-1][0].solver] == sampler["aliases"]
        assert info["sampler_name"] == sampler["name"]


def test_every_sampler_means_a_solver_of_the_embedded_model() -> None:
    assert set(SAMPLERS.values()) <= set(find_model("emoji-128").solvers)


def test_a_sampler_and_a_schedule_that_are_not_ours_are_the_models(
    client: TestClient, backend: FakeBackend
) -> None:
    draw(client, {"prompt": "p", "sampler_name": "LCM", "scheduler": "exponential"})
    params, _ = backend.drawn[-1]
    assert (params.solver, params.timestep_spacing) == (MODEL.solver, MODEL.timestep_spacing)
    draw(client, {"prompt": "p", "sampler_index": "DDIM", "scheduler": "Automatic"})
    params, _ = backend.drawn[-1]
    assert (params.solver, params.timestep_spacing) == ("ddim", MODEL.timestep_spacing)


def test_each_image_can_be_drawn_again_by_its_own_seed(client: TestClient, backend: FakeBackend) -> None:
    images, info, parameters = draw(client, {"prompt": "p", "seed": 7, "batch_size": 2, "n_iter": "2"})
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["seed"], parameters["seed"], parameters["batch_size"]) == (7, 7, 4)
    again, _, _ = draw(client, {"prompt": "p", "seed": 9})
    assert again == images[2:3]


def test_no_more_images_than_a_request_may_have(client: TestClient) -> None:
    images, _, _ = draw(client, {"prompt": "p", "batch_size": 8, "n_iter": 8})
    assert len(images) == 10


@pytest.mark.parametrize("count", [0, -1, None, "x", [], 1e999])
def test_a_number_of_images_that_is_none_is_one(client: TestClient, count: object) -> None:
    body = json.dumps({"prompt": "p", "batch_size": count})
    response = client.post(TXT2IMG, content=body, headers={"content-type": "application/json"})
    assert len(response.json()["images"]) == 1


def test_unknown_fields_are_ignored(client: TestClient, backend: FakeBackend) -> None:
    draw(client, {"prompt": "p", "seed": 1, "alwayson_scripts": {"x": []}, "styles": ["a"], "tiling": True})
    assert backend.drawn[-1][0] == make_params(prompt="p", seed=1)


@pytest.mark.parametrize(("size", "served"), [((512, 512), (8, 8)), ((1024, 512), (16, 8)), ((8, 8), (8, 8))])
def test_the_nearest_size_is_drawn_and_told(
    client: TestClient, size: tuple[int, int], served: tuple[int, int]
) -> None:
    _, info, parameters = draw(client, {"prompt": "p", "width": size[0], "height": size[1]})
    for told in (info, parameters):
        assert (told["width"], told["height"]) == served


def test_images_that_are_not_wanted_are_not_sent(client: TestClient) -> None:
    images, info, _ = draw(client, {"prompt": "p", "send_images": False})
    assert images == [] and len(info["all_seeds"]) == 1


def test_the_cost_is_told(client: TestClient) -> None:
    _, info, _ = draw(client, {"prompt": "a blorp", "batch_size": 2})
    assert info["safelight"]["nfe"] == 10
    assert info["safelight"]["unknown_words"] == ["blorp"]


def test_requests_are_recorded_logged_and_limited_as_all_others(
    client: TestClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert client.post(
        TXT2IMG, json={"prompt": "p", "batch_size": 2}, headers={"x-request-id": "mine"}
    ).is_success
    assert client.post(TXT2IMG, json={"prompt": ""}).json()["error"]["param"] == "prompt"
    headers = {"content-type": "application/json"}
    assert client.post(TXT2IMG, content=b"[]", headers=headers).json()["error"]["code"] == "invalid_json"
    assert client.post(TXT2IMG, content=b"{", headers=headers).status_code == 400
    assert client.post(TXT2IMG, content=b'{"prompt": "p"}').status_code == 415
    for error, status in ((QueueFull(), 429), (StageFailed(), 503)):
        backend.errors = [error]
        assert client.post(TXT2IMG, json={"prompt": "p"}).status_code == status
    report = client.get("/v1/accounting?latest=9").json()
    assert report["requests"] == {"done": 1, "refused": 5, "aborted": 0, "failed": 1}
    assert report["images"] == 2
    assert report["latest"][-1]["request_id"] == "mine"
    line = next(r for r in caplog.records if getattr(r, "fields", {}).get("id") == "mine")
    assert line.fields["images"] == 2 and line.fields["model"] == MODEL.id  # type: ignore[attr-defined]


def test_an_image_is_edited(client: TestClient, backend: FakeBackend) -> None:
    source = base64.b64encode(b"an image").decode()
    images = [f"data:image/png;base64,{source}"]
    fields = {"prompt": "p", "seed": 7, "denoising_strength": 0.5, "init_images": images}
    response = client.post("/sdapi/v1/img2img", json=fields)
    assert response.status_code == 200, response.text
    params = backend.drawn[-1][0]
    assert params.edit is not None and (params.edit.strength, params.edit.is_inpainting) == (0.5, False)
    assert params.seed == 7 and len(response.json()["images"]) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["!"]}, "image"),
        ({"init_images": ["eA=="], "mask": "eA=="}, "mask"),
        ({"init_images": ["eA=="], "denoising_strength": "much"}, "denoising_strength"),
        ({"init_images": ["eA=="], "denoising_strength": "0_5"}, "denoising_strength"),
        ({"init_images": ["eA=="], "sampler_name": "Euler", "sampler_index": {}}, "sampler_index"),
    ],
)
def test_an_edit_that_cannot_be_drawn_is_refused(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = client.post("/sdapi/v1/img2img", json={"prompt": "p"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_the_schema_says_what_is_read(client: TestClient) -> None:
    """As of other routes, so that what it allows is drawn; `steps: abc` was allowed."""
    body = client.get("/openapi.json").json()["paths"][TXT2IMG]["post"]["requestBody"]
    validator = Draft202012Validator(body["content"]["application/json"]["schema"])
    values: dict[str, list[object]] = {
        "steps": [20, "20", 20.0, "", None, "abc", 0],
        "cfg_scale": [4.5, "4.5", None, "high", []],
        "sampler_name": ["Euler", "of nobody", "", None, 5, {}],
        "seed": [-1, "7", None, "x", 0.5],
        "width": [512, "512", "wide", None, 0, 16385],
        "batch_size": [2, "2", "two", None, []],
    }
    for field, tried in values.items():
        for value in tried:
            fields = {"prompt": "p", field: value}
            status = client.post(TXT2IMG, json=fields).status_code
            assert status == (200 if validator.is_valid(fields) else 400), fields


def test_an_address_of_two_routes_allows_the_methods_of_both(client: TestClient) -> None:
    answer = client.delete("/sdapi/v1/options")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


@pytest.fixture
def waiting(client: TestClient, backend: FakeBackend) -> Iterator[Any]:
    """A request for two images that waits in the backend; the result of its call."""
    client.get("/readyz")
    while not backend.drawn:  # the warm-up image
        client.get("/livez")
    backend.gate.clear()
    calls = len(backend.calls)
    body = {"prompt": "p", "batch_size": 2, "steps": 8}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, TXT2IMG, json=body)
        while len(backend.calls) < calls + 2:
            client.get("/livez")
        yield answer
        client.portal.call(backend.gate.set)  # type: ignore[union-attr]


def test_progress_is_nothing_without_a_request(client: TestClient) -> None:
    progress = client.get("/sdapi/v1/progress?skip_current_image=true").json()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    assert progress["eta_relative"] == 0.0 and progress["current_image"] is None


def test_progress_of_a_request_under_way(client: TestClient, waiting: Any) -> None:
    progress = client.get("/sdapi/v1/progress").json()
    assert 0.0 < progress["progress"] < 1.0
    assert (progress["state"]["job_count"], progress["state"]["sampling_steps"]) == (2, 8)
    other = client.get("/sdapi/v1/progress", headers={"authorization": "Basic b3RoZXI="}).json()
    assert other["state"]["job_count"] == 0


def test_an_interrupt_ends_the_callers_requests(
    client: TestClient, backend: FakeBackend, waiting: Any
) -> None:
    assert client.post("/sdapi/v1/interrupt").json() == {}
    response = waiting.result(10)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "interrupted")
    assert backend.num_cancelled == 2
    assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    report = client.get("/v1/accounting?latest=1").json()
    assert report["requests"]["aborted"] == 1 and report["latest"][0]["code"] == "interrupted"


def test_nobody_elses_requests_are_interrupted(
    client: TestClient, backend: FakeBackend, waiting: Any
) -> None:
    for headers in ({"authorization": "Basic b3RoZXI="}, {"x-forwarded-for": "10.1.2.3, 10.0.0.1"}):
        assert client.post("/sdapi/v1/interrupt", headers=headers).status_code == 200
    client.portal.call(backend.gate.set)  # type: ignore[union-attr]
    assert waiting.result(10).status_code == 200


def test_a_real_image_has_what_the_info_says() -> None:
    """The smallest network, in this process: the answer's text is the text in the file."""
    model = find_model("tiny")
    settings = Settings(model="tiny")
    pipeline = InProcessPipeline(model, settings)
    pipeline.wait()
    try:
        with TestClient(build_gateway(InProcessBackend(pipeline), model, settings)) as client:
            fields = {"prompt": "a red apple", "steps": 2, "seed": 5, "batch_size": 2}
            files, info, _ = draw(client, fields)
    finally:
        pipeline.close()
    texts = [Image.open(io.BytesIO(file)).info["parameters"] for file in files]
    assert texts == info["infotexts"]
    assert [f"Seed: {seed}," in text for seed, text in zip((5, 6), texts, strict=True)] == [True, True]
