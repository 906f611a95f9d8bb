"""The Ray Serve application: its deployments and the options that the settings give them."""

import warnings
from typing import Any

import pytest

from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.service.settings import Settings

with warnings.catch_warnings():  # Serve's deprecation warning about pydantic
    warnings.simplefilter("ignore")
    from ray.serve import Application, Deployment

    from safelight.service import app as app_module
    from safelight.service.app import app_from_args, build_app
    from safelight.service.ray_serve import deployments as classes
    from safelight.service.ray_serve.backends import ColocatedBackend, SplitBackend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Serve's, of `metrics_interval_s`

CLASSES = {
    "TextEncoder": classes.EncodeDeployment,
    "Denoiser": classes.DenoiseDeployment,
    "VaeDecoder": classes.DecodeDeployment,
    "Colocated": classes.ColocatedDeployment,
    "Ledger": classes.LedgerDeployment,
}
SPLIT = ("TextEncoder", "Denoiser", "VaeDecoder")
SCALING = {
    "min_replicas": 1,
    "max_replicas": 8,
    "upscale_delay_s": 1.5,
    "downscale_delay_s": 9.0,
    "metrics_interval_s": 1.0,
    "look_back_period_s": 3.0,
}
RANGES: dict[str, Any] = {"upscale_delay_seconds": 1.5, "downscale_delay_seconds": 9.0, "target_seconds": 7.0}


def deployments_of(app: Application) -> dict[str, Deployment]:
    """The ingress of an application and everything bound into it, by name."""
    deployments = {app._bound_deployment.name: app._bound_deployment}
    for arg in app._bound_deployment.init_args:
        if isinstance(arg, Application):
            deployments |= deployments_of(arg)
    return deployments


def build(**settings: Any) -> dict[str, Deployment]:
    return deployments_of(build_app(Settings(model="tiny", **settings)))


def bound(deployment: Deployment) -> list[object]:
    """What a deployment is constructed with; other deployments by their names."""
    return [
        arg._bound_deployment.name if isinstance(arg, Application) else arg for arg in deployment.init_args
    ]


def options(deployment: Deployment) -> dict[str, Any]:
    config = deployment._deployment_config
    return {
        "num_replicas": deployment.num_replicas,
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_queued_requests": config.max_queued_requests,
        "graceful_shutdown_timeout_s": config.graceful_shutdown_timeout_s,
        "ray_actor_options": deployment.ray_actor_options,
    }


@pytest.mark.parametrize(
    ("layout", "stages", "backend_class"),
    [("split", SPLIT, SplitBackend), ("colocated", ("Colocated",), ColocatedBackend)],
)
def test_each_layout_has_its_deployments(layout: str, stages: tuple[str, ...], backend_class: type) -> None:
    args = {"model": "tiny", "stages": layout, "denoise_replicas": "0-2", "admin_key": "hidden"}
    deployments = deployments_of(app_from_args(args))
    settings, model = Settings(host="0.0.0.0", **args), find_model("tiny")  # where Serve says, unknown here
    assert deployments.keys() == {"Gateway", "Ledger", *stages}
    make_backend: Any
    make_backend, *parts = bound(deployments["Gateway"])
    assert make_backend.func is backend_class
    asleep = {"denoise"} if layout == "split" else {"encode", "denoise", "decode"}
    assert make_backend.keywords == {"may_sleep": asleep}
    assert parts == [model, settings, "Ledger", *stages]
    gateway: Any = deployments["Gateway"].func_or_class
    assert issubclass(gateway, classes.GatewayDeployment)
    assert bound(deployments["Ledger"]) == [settings]
    for stage in stages:
        assert bound(deployments[stage]) == [model, settings, "Ledger"]
    for name in ("Ledger", *stages):
        assert deployments[name].func_or_class is CLASSES[name]


def test_a_fixed_number_of_replicas_takes_all_images_in_flight() -> None:
    deployments = build(
        encode_replicas="2", denoise_replicas="3", decode_replicas="4", gateway_replicas="5",
        max_pictures=100, shutdown_seconds=12.0, denoise_gpus=1.0, encode_gpus=0.25,
    )  # fmt: skip
    expected = {
        "TextEncoder": (2, 164, 164, {"num_cpus": 0.1, "num_gpus": 0.25}),
        "Denoiser": (3, 164, 164, {"num_cpus": 0.1, "num_gpus": 1.0}),
        "VaeDecoder": (4, 464, 464, {"num_cpus": 0.1}),  # and three previews of each
        "Gateway": (5, 10_000, -1, {"num_cpus": 0.1}),
        "Ledger": (1, 10_000, -1, {"num_cpus": 0.1}),
    }
    for name, (replicas, ongoing, queued, actor) in expected.items():
        assert options(deployments[name]) == {
            "num_replicas": replicas,
            "max_ongoing_requests": ongoing,
            "max_queued_requests": queued,
            "graceful_shutdown_timeout_s": 12.0,
            "ray_actor_options": actor,
        }, name
        config = deployments[name]._deployment_config
        assert config.autoscaling_config is None
        assert (config.health_check_period_s, config.max_constructor_retry_count) == (2.0, 2)
        assert config.graceful_shutdown_wait_loop_s == 0.5


@pytest.mark.parametrize(
    ("name", "setting", "ongoing"),
    [
        ("TextEncoder", "encode_replicas", 24),
        ("Denoiser", "denoise_replicas", 24),
        ("VaeDecoder", "decode_replicas", 464),
    ],
)
def test_a_range_of_replicas_scales_by_work(name: str, setting: str, ongoing: int) -> None:
    settings: dict[str, Any] = {setting: "1-8", "max_rows": 12, "max_pictures": 100, "deadline_seconds": 50.0}
    deployments = build(**settings, **RANGES)
    config = deployments[name]._deployment_config
    scaling = config.autoscaling_config
    assert scaling is not None
    assert {key: getattr(scaling, key) for key in SCALING} == SCALING
    assert scaling.policy.policy_kwargs == {"target_seconds": 7.0}
    assert scaling.policy.policy_function == "safelight.service.ray_serve.autoscaling:ByWork"
    assert (config.max_ongoing_requests, config.graceful_shutdown_timeout_s) == (ongoing, 50.0)
    for other in {*SPLIT, "Gateway", "Ledger"} - {name}:
        assert deployments[other]._deployment_config.autoscaling_config is None


def test_gateways_scale_by_requests_in_flight() -> None:
    config = build(gateway_replicas="1-8", **RANGES)["Gateway"]._deployment_config
    scaling = config.autoscaling_config
    assert scaling is not None
    assert {key: getattr(scaling, key) for key in SCALING} == SCALING
    assert scaling.target_ongoing_requests == 64
    assert config.max_ongoing_requests == 10_000


def test_colocated_stages_have_the_replicas_and_gpus_of_the_denoiser() -> None:
    deployments = build(stages="colocated", denoise_replicas="3", denoise_gpus=0.5)
    colocated = deployments["Colocated"]
    assert (colocated.num_replicas, (colocated.ray_actor_options or {})["num_gpus"]) == (3, 0.5)
    scaling = build(stages="colocated", denoise_replicas="0-2")[
        "Colocated"
    ]._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 2)


def test_the_policy_that_serve_imports_by_name_exists() -> None:
    module, _, name = app_module._by_work(Settings())["policy"]["policy_function"].partition(":")
    assert module == classes.__name__.replace("deployments", "autoscaling")
    from safelight.service.ray_serve import autoscaling

    assert getattr(autoscaling, name)(target_seconds=1.0)


def test_an_unknown_model_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownModel, match="nosuch"):
        build_app(Settings(model="nosuch"))
