"""The operator's choices about the model: its name, and the defaults of requests that do not say."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from starlette.testclient import TestClient

import safelight
from safelight.models.find_checkpoint import ensure_tiny
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.request_defaults import RequestDefaults, with_defaults
from safelight.pipeline.errors import InvalidParams
from safelight.service import cli
from safelight.service.http.gateway import build_gateway
from safelight.service.http.readiness import make_warm_up_image
from safelight.service.model_values import (
    parse_guidance,
    parse_model_values,
    parse_size,
    parse_steps,
    value_for,
)
from safelight.service.served_model import find_model_to_add, find_served_model, find_served_models
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.models.checkpoints.cached_models import write_snapshot
from tests.service.conftest import ROUTE
from tests.tiny_models import write_tiny_model

CHOSEN = RequestDefaults(num_steps=7, guidance_scale=1.0, solver="ddim", size=(16, 8))


@pytest.fixture
def chosen_client() -> Iterator[tuple[TestClient, FakeBackend]]:
    backend = FakeBackend()
    model = dataclasses.replace(with_defaults(MODEL, CHOSEN), id="shop/turbo", checkpoint_id="fake-8")
    with TestClient(build_gateway(backend, model, Settings())) as client:
        yield client, backend


def test_requests_that_do_not_say_get_the_operators_defaults(
    chosen_client: tuple[TestClient, FakeBackend],
) -> None:
    client, backend = chosen_client
    for size in ({}, {"size": "auto"}):
        answer = client.post(ROUTE, json={"prompt": "apple", **size}).json()
        params = backend.drawn[-1][0]
        assert (params.num_steps, params.guidance_scale, params.solver) == (7, 1.0, "ddim")
        assert (params.width, params.height, answer["size"]) == (16, 8, "16x8")
    client.post(ROUTE, json={"prompt": "apple", "num_inference_steps": 3, "size": "8x8"})
    params = backend.drawn[-1][0]
    assert (params.num_steps, params.width, params.solver) == (3, 8, "ddim")


def test_the_defaults_and_the_native_size_are_listed(chosen_client: tuple[TestClient, FakeBackend]) -> None:
    model = chosen_client[0].get("/v1/models").json()["data"][0]
    assert model["sizes"] == ["8x8", "16x8"]  # the native size stays the first
    assert model["defaults"] == {
        "size": "16x8",
        "num_inference_steps": 7,
        "guidance_scale": 1.0,
        "solver": "ddim",
        "timestep_spacing": "trailing",
    }


def test_the_served_name_is_everywhere_and_the_models_own_id_is_taken(
    chosen_client: tuple[TestClient, FakeBackend],
) -> None:
    client, _ = chosen_client
    assert client.get("/v1/models").json()["data"][0]["id"] == "shop/turbo"
    for name in ("shop/turbo", "fake-8", "dall-e-3"):
        assert client.get(f"/v1/models/{name}").json()["id"] == "shop/turbo"
        answer = client.post(ROUTE, json={"prompt": "apple", "model": name}).json()
        assert answer["usage"]["safelight"]["model"] == "shop/turbo"
    assert client.get("/v1/models/turbo").status_code == 404
    refusal = client.post(ROUTE, json={"prompt": "apple", "model": "shop"})
    assert refusal.status_code == 404
    assert "allowed: shop/turbo, fake-8, " in refusal.json()["error"]["message"]
    schema = client.get("/openapi.json").json()
    body = schema["paths"][ROUTE]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"]["anyOf"][0]["enum"][:2] == ["shop/turbo", "fake-8"]


def test_accounting_and_images_have_the_served_name() -> None:
    with safelight.Pipeline("tiny", served_name="shop/apples:v1", default_steps=2) as pipeline:
        [image] = pipeline.generate("a red apple", seed=1)
        usage = pipeline.generate("a red apple", seed=1).usage.safelight
        parameters = json.loads(image.pil.info["safelight"])
        with TestClient(build_gateway(FakeBackend(), pipeline._model, Settings())) as client:
            client.post(ROUTE, json={"prompt": "apple"})
            accounts = client.get("/v1/accounting").json()["accounts"]
    assert (usage.model, usage.num_inference_steps) == ("shop/apples:v1", 2)
    assert parameters["model"] == "shop/apples:v1"
    assert [account["model"] for account in accounts] == ["shop/apples:v1"]


def test_the_warm_up_image_has_the_default_size_and_steps_that_its_solver_can_make_do_with() -> None:
    image = make_warm_up_image(with_defaults(MODEL, CHOSEN))
    assert (image.width, image.height, image.num_steps, image.solver) == (16, 8, 1, "ddim")
    assert make_warm_up_image(with_defaults(MODEL, RequestDefaults(solver="plms"))).num_steps == 3


@pytest.mark.parametrize(
    ("defaults", "complaint"),
    [
        (RequestDefaults(num_steps=0), "num_steps must be between 1 and 200, got 0"),
        (RequestDefaults(guidance_scale=21.0), "guidance_scale must be between 0 and 20, got 21"),
        (RequestDefaults(solver="heun9"), "solver 'heun9' is not served by fake-8; allowed: euler"),
        (RequestDefaults(size=(64, 64)), "size 64x64 is not served by fake-8; allowed: 8x8, 16x8"),
        (RequestDefaults(solver="plms", num_steps=2), "num_steps must be at least 3 for plms"),
    ],
)
def test_a_default_that_the_model_cannot_serve_is_refused(defaults: RequestDefaults, complaint: str) -> None:
    with pytest.raises(InvalidParams, match=complaint):
        with_defaults(MODEL, defaults)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"default_steps": 500}, "default_steps must be between 1 and 200, got 500"),
        ({"default_size": "100x100"}, "default_size 100x100 is not served by tiny; allowed: 64x64"),
        ({"default_solver": "ddpm_2"}, "default_solver 'ddpm_2' is not served by tiny; allowed: "),
        ({"default_guidance": "-1"}, "default_guidance must be between 0 and 20, got -1"),
        ({"default_steps": "sdxl=4"}, "default_steps has no value for tiny, only for sdxl"),
        ({"default_steps": "a=4,b=5"}, "default_steps has no value for tiny, only for a, b"),
    ],
)
def test_a_default_that_the_model_cannot_serve_is_an_error_at_start(
    values: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadSetting, match=f"^{re.escape(complaint)}"):
        find_served_model(Settings(model="tiny", **values))
    [(name, value)] = values.items()
    flag = f"--{name.replace('_', '-')}={value}"
    assert cli.main(["serve", "--model", "tiny", flag, "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"safelight serve: {complaint}")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"default_steps": "4.5"}, "default_steps must be a whole number, got '4.5'"),
        ({"default_steps": "-4"}, "default_steps must be a whole number, got '-4'"),
        ({"default_guidance": "nan"}, "default_guidance must be a number, got 'nan'"),
        ({"default_size": "64"}, "default_size must be WIDTHxHEIGHT, got '64'"),
        ({"default_steps": "a=4,a=5"}, "default_steps has two values for a, got 'a=4,a=5'"),
        ({"default_steps": "4,5"}, "default_steps has two values for every model, got '4,5'"),
        ({"default_steps": "=4"}, "default_steps must be VALUE or NAME=VALUE,NAME2=VALUE2, got '=4'"),
        ({"default_solver": "a="}, "default_solver must be VALUE or NAME=VALUE,NAME2=VALUE2, got 'a='"),
        ({"served_name": "my model"}, "served_name must be 1 to 128 letters, digits and any of"),
        ({"served_name": "a//b"}, "served_name must be"),
        ({"served_name": "a/"}, "served_name must be"),
        ({"served_name": "/a"}, "served_name must be"),
        ({"served_name": "a\n"}, "served_name must be"),
        ({"served_name": "ä"}, "served_name must be"),
        ({"served_name": "a" * 129}, "served_name must be"),
        ({"variant": "../fp16"}, "variant must be a name such as fp16 or non-ema, got '../fp16'"),
        ({"variant": "fp16.safetensors"}, "variant must be a name"),
        ({"allow_unknown_config": "perhaps"}, "allow_unknown_config must be true or false, got 'perhaps'"),
    ],
)
def test_a_malformed_choice_is_refused_by_name(values: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadSetting) as refusal:
        Settings(**values)
    assert str(refusal.value).startswith(complaint)


def test_values_by_the_names_of_models() -> None:
    values = parse_model_values(" sd3=28, org/turbo=4 ,9", parse_steps)
    assert values == {"sd3": 28, "org/turbo": 4, "": 9}
    assert [value_for(values, names) for names in (("sd3",), ("x", "org/turbo"), ("x",))] == [28, 4, 9]
    assert value_for({"sd3": 28}, ("x",)) is None
    assert parse_model_values("", parse_steps) == {}
    assert parse_model_values("a=b=1x2", parse_size) == {"a=b": (1, 2)}
    assert parse_model_values("3.5", parse_guidance) == {"": 3.5}


@pytest.mark.parametrize("name", ["tiny", "shop/tiny"])
def test_a_default_may_name_the_model_by_either_name(name: str) -> None:
    settings = Settings(
        model="tiny", served_name="shop/tiny", default_steps=f"{name}=3", default_guidance="2"
    )
    model = find_served_model(settings)
    assert (model.num_steps, model.guidance_scale, model.id) == (3, 2.0, "shop/tiny")


def test_services_of_several_models_may_share_a_setting() -> None:
    settings = Settings(model="tiny", default_steps="sd3=28,tiny=3", default_guidance="sd3=7,2")
    model = find_served_model(settings)
    assert (model.num_steps, model.guidance_scale) == (3, 2.0)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_default_guidance_up_to_one_is_off_everywhere(scale: float) -> None:
    defaults = RequestDefaults(guidance_scale=scale)
    assert with_defaults(MODEL, defaults).guidance_scale == 1.0
    assert defaults.changes() == {"guidance_scale": 1.0}


def served(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_plan_generate_and_check_use_the_settings_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"STEPS": "3", "GUIDANCE": "1", "SOLVER": "ddim", "SIZE": "64x64"}
    for name, value in defaults.items():
        monkeypatch.setenv(f"SAFELIGHT_DEFAULT_{name}", value)
    monkeypatch.setenv("SAFELIGHT_SERVED_NAME", "shop/tiny")
    monkeypatch.setenv("SAFELIGHT_DEFAULT_SOLVER", "euler")
    plan = served(["plan", "--model", "tiny"], capsys)
    assert (plan["model"], plan["steps"], plan["guidance_scale"], plan["solver"], plan["size"]) == (
        "shop/tiny", 3, 1.0, "euler", "64x64",
    )  # fmt: skip
    assert served(["plan", "--model", "tiny", "--steps", "5"], capsys)["steps"] == 5
    usage = served(
        ["generate", "apple", "--model", "tiny", "-o", str(tmp_path / "a.png"), "--seed", "1"], capsys
    )["usage"]["safelight"]
    assert (usage["model"], usage["num_inference_steps"], usage["guidance_scale"]) == ("shop/tiny", 3, 1.0)
    check = served(["check", "tiny", "--default-steps", "4", "--served-name", "x"], capsys)
    assert (check["id"], check["defaults"]["num_inference_steps"]) == ("x", 4)
    assert cli.main(["check", "tiny"]) == 0
    assert "served as shop/tiny; by default 64x64, 3 steps of euler at guidance 1" in capsys.readouterr().out


def test_a_published_checkpoint_is_planned_with_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    plain = served(["plan", "--model", "sd3.5-large"], capsys)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SAFELIGHT_DEFAULT_STEPS", "sd3.5-large=4")
        environment.setenv("SAFELIGHT_DEFAULT_GUIDANCE", "1")
        turbo = served(["plan", "--model", "sd3.5-large"], capsys)
    assert (plain["steps"], turbo["steps"], turbo["guidance_scale"], turbo["nfe"]) == (28, 4, 1.0, 4)
    assert 13 < plain["stage_tflop"]["denoise"] / turbo["stage_tflop"]["denoise"] < 15


def test_a_cached_model_is_served_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    write_snapshot(tmp_path, ensure_tiny())
    with safelight.Pipeline("org/name") as pipeline:
        [image] = pipeline.generate("a red apple", seed=1, num_inference_steps=2)
        model: ModelInfo = pipeline._model
    assert (model.id, model.checkpoint_id, model.names) == ("org/name", "", ("org/name",))
    assert "org/name" in image.pil.info["parameters"]


def test_the_choices_about_reading_reach_the_model() -> None:
    with pytest.raises(safelight.SafelightError, match="no part has safetensors files of the variant 'fp16'"):
        safelight.Pipeline("tiny", variant="fp16")
    for value in ("1", True):
        options = find_served_model(Settings(model="tiny", allow_unknown_config=value)).read_options
        assert options.allow_unknown_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_several_models_have_names_and_defaults_of_their_own(other: Path) -> None:
    settings = Settings(
        model=f"tiny, {other}",
        served_name=f"{other}=shop/turbo",
        default_steps="shop/turbo=3,elsewhere=5",
        default_guidance="other=2,4",
    )
    first, second = find_served_models(settings)
    assert (first.id, second.id, second.names) == ("tiny", "shop/turbo", ("shop/turbo", "other"))
    assert (first.num_steps, first.guidance_scale) == (20, 4.0)
    assert (second.num_steps, second.guidance_scale) == (3, 2.0)
    assert find_served_model(settings) == first


def test_a_name_in_the_setting_may_be_the_models_own(other: Path) -> None:
    settings = Settings(model=f"tiny,{other}", served_name="other=b,tiny=a")
    assert [model.id for model in find_served_models(settings)] == ["a", "b"]


def test_a_folder_whose_path_holds_a_comma_is_one_model(other: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one,two"
    folder.symlink_to(other)
    assert [model.path for model in find_served_models(Settings(model=str(folder)))] == [other.resolve()]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"model": "tiny,tiny"},
            "two models are called tiny; give one of them another name with served_name",
        ),
        ({"model": "tiny,{other}", "served_name": "tiny=other"}, "two models are called other"),
        ({"model": "tiny,{other}", "served_name": "shop"}, "served_name must say which of the 2 models"),
        ({"model": "tiny,{other}", "default_steps": "sdxl=4"}, "default_steps has no value for tiny, only"),
        ({"model": "tiny,{other}", "default_steps": "other=999"}, "default_steps must be between 1 and 200"),
    ],
)
def test_models_that_cannot_be_told_apart_or_configured_are_refused(
    other: Path, values: dict[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: value.format(other=other) for name, value in values.items()}
    with pytest.raises(BadSetting, match=f"^{re.escape(complaint)}"):
        find_served_models(Settings(**values))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    assert cli.main(["serve", *flags, "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"safelight serve: {complaint}")


def test_a_model_that_is_added_has_its_own_values_or_those_of_the_service(other: Path) -> None:
    service = Settings(model="tiny", served_name="shop", default_steps="late=7,9", default_guidance="shop=2")
    model = find_model_to_add(service, {"model": str(other)})
    assert (model.id, model.num_steps, model.guidance_scale) == ("other", 9, 5.0)
    model = find_model_to_add(service, {"model": str(other), "served_name": "late", "default_guidance": "3"})
    assert (model.id, model.num_steps, model.guidance_scale) == ("late", 7, 3.0)
    with pytest.raises(BadSetting, match="^served_name must be 1 to 128"):
        find_model_to_add(service, {"model": str(other), "served_name": "a//b"})
