"""The Ray Serve application: its deployments and the options that the settings give them."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.service.served_model import find_served_models
from safelight.service.settings import Settings

with warnings.catch_warnings():  # Serve's deprecation warning about pydantic
    warnings.simplefilter("ignore")
    from ray import serve
    from ray.serve import Application, Deployment

    from safelight.service import app as app_module
    from safelight.service.app import app_from_args, build_app
    from safelight.service.ray_serve import deployments as classes
    from safelight.service.ray_serve import gateway_deployment
    from safelight.service.ray_serve.backends import ColocatedBackend, SplitBackend
    from safelight.service.stage_sets import StageSet, plan_stages

from tests.tiny_models import write_tiny_model

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


@pytest.mark.parametrize(("layout", "stages"), [("split", SPLIT), ("colocated", ("Colocated",))])
def test_each_layout_has_its_deployments(layout: str, stages: tuple[str, ...]) -> None:
    args = {"model": "tiny", "stages": layout, "denoise_replicas": "0-2", "admin_key": "hidden"}
    deployments = deployments_of(app_from_args(args))
    settings, model = Settings(host="0.0.0.0", **args), find_model("tiny")  # where Serve says, unknown here
    assert deployments.keys() == {"Gateway", "Ledger", *stages}
    names = stages if layout == "split" else stages * 3
    served = (StageSet(model, *names),)
    assert bound(deployments["Gateway"]) == [served, None, settings, None, "Ledger", *stages]
    assert gateway_deployment.unpack_sets(deployments["Gateway"].user_config) == served
    gateway: Any = deployments["Gateway"].func_or_class
    assert issubclass(gateway, gateway_deployment.GatewayDeployment)
    assert bound(deployments["Ledger"]) == [settings]
    for stage in stages:
        assert bound(deployments[stage]) == [model, settings, "Ledger"]
    for name in ("Ledger", *stages):
        assert deployments[name].func_or_class is CLASSES[name]


@pytest.mark.parametrize(
    ("layout", "backend_class", "asleep"),
    [
        ("split", SplitBackend, {"denoise"}),
        ("colocated", ColocatedBackend, {"encode", "denoise", "decode"}),
    ],
)
def test_a_backend_calls_the_deployments_of_its_model(
    monkeypatch: pytest.MonkeyPatch, layout: str, backend_class: type, asleep: set[str]
) -> None:
    monkeypatch.setattr(serve, "get_deployment_handle", lambda name, app: f"{name} of {app}")
    settings = Settings(model="tiny", stages=layout, denoise_replicas="0-2")
    names = ("E", "D", "V") if layout == "split" else ("C", "C", "C")
    backend = gateway_deployment.make_backend(StageSet(find_model("tiny"), *names), settings, "app")
    assert type(backend) is backend_class
    handles = [value for value in vars(backend).values() if isinstance(value, str)]
    assert handles == [f"{name} of app" for name in dict.fromkeys(names)]
    assert vars(backend)["_may_sleep"] == asleep


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
        assert (config.health_check_period_s, config.max_constructor_retry_count) == (0.5, 2)
        # an update needs no spare GPU, and there is only one ledger
        may_surge = name != "Ledger" and "num_gpus" not in actor
        assert config.max_surge_percent == (100 if may_surge else 0), name
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


def test_gateways_that_serve_http_themselves_scale_by_what_they_report() -> None:
    settings = Settings(gateway_replicas="1-8")
    served = plan_stages(find_served_models(settings), settings)
    app = app_module.build_sets_app(settings, served, listener_path=Path("/somewhere/http.sock"))
    scaling = deployments_of(app)["Gateway"]._deployment_config.autoscaling_config
    assert scaling is not None
    assert scaling.policy.policy_function == "safelight.service.ray_serve.autoscaling:ByRequests"
    assert scaling.policy.policy_kwargs == {"target_requests": 64}


def test_colocated_stages_have_the_replicas_and_gpus_of_the_denoiser() -> None:
    deployments = build(stages="colocated", denoise_replicas="3", denoise_gpus=0.5)
    colocated = deployments["Colocated"]
    assert (colocated.num_replicas, (colocated.ray_actor_options or {})["num_gpus"]) == (3, 0.5)
    scaling = build(stages="colocated", denoise_replicas="0-2")[
        "Colocated"
    ]._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 2)


def test_the_policies_that_serve_imports_by_name_exist() -> None:
    from safelight.service.ray_serve import autoscaling

    for options in (app_module._by_work(Settings()), app_module._by_requests(is_proxied=False)):
        module, _, name = options["policy"]["policy_function"].partition(":")
        assert module == autoscaling.__name__
        assert getattr(autoscaling, name)(**options["policy"]["policy_kwargs"])


def test_an_unknown_model_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownModel, match="nosuch"):
        build_app(Settings(model="nosuch"))


def test_several_models_have_a_denoiser_each_and_share_what_is_equal(tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    models = f"tiny,{other}"
    deployments = deployments_of(
        build_app(Settings(model=models, denoise_replicas="1-2", max_rows=4, max_pictures=100))
    )
    assert deployments.keys() == {"Gateway", "Ledger", *SPLIT, "Denoiser-other"}
    assert deployments["Denoiser-other"].func_or_class is classes.DenoiseDeployment
    tiny, second = find_model("tiny"), find_model(str(other))
    assert [bound(deployments[name])[0] for name in (*SPLIT, "Denoiser-other")] == [tiny, tiny, tiny, second]
    served = gateway_deployment.unpack_sets(deployments["Gateway"].user_config)
    assert [stages.model.id for stages in served] == ["tiny", "other"]
    calls = {name: options(deployment)["max_ongoing_requests"] for name, deployment in deployments.items()}
    assert (calls["TextEncoder"], calls["VaeDecoder"]) == (264, 864)  # the images of two models
    assert (calls["Denoiser"], calls["Denoiser-other"]) == (8, 8)
    colocated = deployments_of(build_app(Settings(model=models, stages="colocated")))
    assert colocated.keys() == {"Gateway", "Ledger", "Colocated", "Colocated-other"}


def test_stages_that_are_not_served_run_as_well_and_no_version_changes(tmp_path: Path) -> None:
    """So that Serve restarts nothing when an application is deployed again: docs/adr/0012."""
    settings = Settings(model="tiny")
    served = plan_stages([find_model("tiny")], settings)
    other = find_model(str(write_tiny_model(tmp_path / "other", seed=1)))
    before = deployments_of(app_module.build_sets_app(settings, served))
    after = deployments_of(
        app_module.build_sets_app(settings, served, plan_stages([other], settings, served))
    )
    assert after.keys() - before.keys() == {"Denoiser-other"}
    assert {deployment.version for deployment in after.values()} == {app_module.VERSION}
    assert after["Gateway"].user_config == before["Gateway"].user_config
    published = deployments_of(
        app_module.build_sets_app(settings, (*served, *plan_stages([other], settings, served)))
    )
    assert published["Gateway"].user_config != before["Gateway"].user_config
