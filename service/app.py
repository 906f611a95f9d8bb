"""The composition root: settings to a Ray Serve application."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.backend import Backend
from safelight.service.ray_serve.backends import ColocatedBackend, SplitBackend
from safelight.service.ray_serve.deployments import (
    ColocatedDeployment,
    DecodeDeployment,
    DenoiseDeployment,
    EncodeDeployment,
    GatewayDeployment,
    LedgerDeployment,
)
from safelight.service.settings import Settings, may_sleep, read_settings, replica_range

SMALL_CPU = (
    0.1  # a logical share: the stages set their threads themselves, so that all of them fit on two cores
)
ROOM_FOR_QUESTIONS = 64  # health and status must get through to a stage that is full of images
MANY = 10_000  # the gateway counts its images itself
METRICS_SECONDS = (
    1.0  # how often replicas and handles say what waits for them; Serve's ten are long for a burst
)
BY_REQUESTS = {"target_ongoing_requests": 64}


def app_from_args(args: dict[str, str]) -> Application:
    """For `serve run safelight.service.app:app_from_args model=... stages=...` and the `args` of a Serve config file."""
    return build_app(read_settings(args))


def build_app(settings: Settings) -> Application:
    """Raises `safelight.pipeline.catalog.served_models.UnknownModel`."""
    model = find_model(settings.model)
    make_backend: Callable[..., Backend]
    if settings.stages == "colocated":
        make_backend = partial(ColocatedBackend, may_sleep=may_sleep(settings))
        stages = [
            _stage(
                "Colocated", ColocatedDeployment, settings.denoise_replicas, settings.denoise_gpus, settings
            )
        ]
    else:
        make_backend = partial(SplitBackend, may_sleep=may_sleep(settings))
        stages = [
            _stage("TextEncoder", EncodeDeployment, settings.encode_replicas, settings.encode_gpus, settings),
            _stage("Denoiser", DenoiseDeployment, settings.denoise_replicas, settings.denoise_gpus, settings),
            _stage("VaeDecoder", DecodeDeployment, settings.decode_replicas, settings.decode_gpus, settings),
        ]
    ledger = _ledger(settings).bind(settings)
    return _gateway(settings).bind(
        make_backend, model, settings, ledger, *(stage.bind(model, settings, ledger) for stage in stages)
    )


def _gateway(settings: Settings) -> Deployment:
    least, most = replica_range("gateway_replicas", settings.gateway_replicas)
    # a gateway only passes on, so Serve's own rule, by requests, fits: as many as it may have in flight
    scaling = (
        {"num_replicas": least}
        if least == most
        else {"autoscaling_config": _range(least, most, settings) | BY_REQUESTS}
    )
    make = serve.deployment(name="Gateway", max_ongoing_requests=MANY, **_options(settings), **scaling)
    return make(serve.ingress()(GatewayDeployment))


def _ledger(settings: Settings) -> Deployment:
    make = serve.deployment(name="Ledger", max_ongoing_requests=MANY, **_options(settings))
    return make(LedgerDeployment)


def _stage(name: str, stage: type[Any], replicas: str, num_gpus: float, settings: Settings) -> Deployment:
    least, most = replica_range(name, replicas)
    options = _options(settings, num_gpus)
    room = settings.max_pictures + ROOM_FOR_QUESTIONS
    if least == most:
        options |= {"num_replicas": least, "max_ongoing_requests": room, "max_queued_requests": room}
    else:
        # What does not fit into two ticks waits before the replicas, where one that comes later finds it. But a decoder is given its
        # images while they are still being denoised: long ones must not fill it, and keep out short ones that are done.
        fits = room if stage is DecodeDeployment else 2 * settings.max_rows
        options |= {
            "autoscaling_config": _range(least, most, settings) | _by_work(settings),
            "max_ongoing_requests": fits,
        }
        options["graceful_shutdown_timeout_s"] = (
            settings.deadline_seconds
        )  # a replica that goes finishes what it has
    return serve.deployment(name=name, **options)(stage)


def _range(least: int, most: int, settings: Settings) -> dict[str, Any]:
    return {
        "min_replicas": least,
        "max_replicas": most,
        "upscale_delay_s": settings.upscale_delay_seconds,
        "downscale_delay_s": settings.downscale_delay_seconds,
        "metrics_interval_s": METRICS_SECONDS,
        "look_back_period_s": 3 * METRICS_SECONDS,
    }


def _by_work(settings: Settings) -> dict[str, Any]:
    return {
        "policy": {
            "policy_function": "safelight.service.ray_serve.autoscaling:ByWork",
            "policy_kwargs": {"target_seconds": settings.target_seconds},
        }
    }


def _options(settings: Settings, num_gpus: float = 0.0) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": SMALL_CPU} | ({"num_gpus": num_gpus} if num_gpus else {}),
        "graceful_shutdown_timeout_s": settings.shutdown_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2.0,
        "max_constructor_retry_count": 2,  # a bad checkpoint does not get better
        "logging_config": LoggingConfig(enable_access_log=False),
    }
