"""The Serve configs are valid for Ray Serve and for our own settings."""

import math
import warnings
from pathlib import Path

import pytest
import yaml

from safelight.service.setting_types import replica_range
from safelight.service.settings import Settings, read_settings
from tests.deploy.manifests import SERVE_CONFIGS, settings_of

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    from ray.serve.schema import ServeDeploySchema

    from safelight.service.app import build_app

STAGE_OF_DEPLOYMENT = {
    "Gateway": "gateway",
    "Ledger": "ledger",
    "TextEncoder": "encode",
    "Denoiser": "denoise",
    "VaeDecoder": "decode",
}
STAGES = ("encode", "denoise", "decode")

pytestmark = pytest.mark.parametrize("config", SERVE_CONFIGS, ids=lambda path: path.stem)


def parsed(config: Path) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(config.read_text(encoding="utf-8")))


def max_replicas(replicas: object) -> int:
    return int(str(replicas).split("-")[-1])


def test_serve_understands_it(config: Path) -> None:
    schema = parsed(config)
    (application,) = schema.applications
    assert application.name == "safelight" and application.route_prefix == "/"
    assert application.import_path == "safelight.service.app:app_from_args"
    assert schema.http_options.host == "0.0.0.0" and schema.http_options.port == 8000
    assert schema.proxy_location == "EveryNode"


def test_safelight_understands_it(config: Path) -> None:
    settings = read_settings(settings_of(config))
    assert {name: getattr(settings, name) for name in settings_of(config)} == settings_of(config)


def test_the_deployments_that_it_names_are_those_of_the_application(config: Path) -> None:
    bound = build_app(Settings(model="tiny", stages=settings_of(config)["stages"]))._bound_deployment
    names = {
        bound.name,
        *(
            argument._bound_deployment.name
            for argument in bound.init_args
            if hasattr(argument, "_bound_deployment")
        ),
    }
    (application,) = parsed(config).applications
    assert {deployment.name for deployment in application.deployments} <= STAGE_OF_DEPLOYMENT.keys() <= names


def test_its_overrides_leave_the_stages_their_gpus(config: Path) -> None:
    """`ray_actor_options` of a Serve config replace all of ours, the share of a GPU included."""
    (application,) = parsed(config).applications
    for deployment in application.deployments:
        if deployment.ray_actor_options and hasattr(deployment.ray_actor_options, "num_cpus"):
            assert settings_of(config).get(f"{STAGE_OF_DEPLOYMENT[deployment.name]}_gpus", 0) == 0, (
                deployment.name
            )


def test_the_gateway_answers_before_serve_does(config: Path) -> None:
    """Serve's own timeout answers in plain text and leaves no usage record."""
    settings = Settings()
    arguments = settings_of(config)
    longest = arguments.get("body_seconds", settings.body_seconds) + arguments.get(
        "deadline_seconds", settings.deadline_seconds
    )
    assert parsed(config).http_options.request_timeout_s >= longest + 20


def test_shares_of_a_gpu_can_be_packed(config: Path) -> None:
    """Shares are whole GPUs, or fractions that fit one GPU at the maximum of replicas."""
    arguments = settings_of(config)
    gpus = {stage: arguments.get(f"{stage}_gpus", 0) for stage in STAGES}
    shared = sum(
        gpus[stage] * max_replicas(arguments[f"{stage}_replicas"]) for stage in STAGES if gpus[stage] < 1
    )
    assert math.isclose(shared, 0) or shared <= 1 + 1e-9
    assert all(gpu < 1 or gpu == int(gpu) for gpu in gpus.values())
    assert any(gpus.values()) == ("gpu" in config.stem)


def test_ranges_are_text(config: Path) -> None:
    for name, value in settings_of(config).items():
        if name.endswith("_replicas"):
            assert isinstance(value, str), f"{name} is quoted: YAML must not make a number or a date of it"
            low, high = replica_range(name, value)
            assert low >= 1, (
                "a stage at 0 makes the first image wait for a node: an operator's choice, not a default"
            )
            assert high == max_replicas(value)
