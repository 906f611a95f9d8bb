"""Builds the Ray Serve application from the settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from safelight.service.previews import MAX_PREVIEWS
from safelight.service.ray_serve.deployments import (
    ColocatedDeployment,
    DecodeDeployment,
    DenoiseDeployment,
    EncodeDeployment,
    LedgerDeployment,
)
from safelight.service.ray_serve.gateway_deployment import GatewayDeployment, MakeChanges, pack_sets
from safelight.service.runtime.addresses import ALL_INTERFACES
from safelight.service.served_model import find_served_models
from safelight.service.setting_types import replica_range
from safelight.service.settings import Settings, read_settings
from safelight.service.stage_sets import StageSet, plan_stages, served_by

# CPUs that Ray reserves for a replica. Small, so that all replicas fit on two cores.
# The stages set their numbers of threads themselves.
REPLICA_CPUS = 0.1
# Calls beside images that a stage accepts while it is full of them: health checks and status.
STATUS_CALLS = 64
# For deployments whose calls are limited elsewhere: the gateway limits its images itself.
UNLIMITED_CALLS = 10_000
# How often replicas and handles report their queues; Serve's default of ten seconds is long for a burst.
METRICS_SECONDS = 1.0
# Of every deployment: an application that is deployed again leaves alone what is configured as before.
# Otherwise Serve gives each deployment a new version every time, and restarts all replicas (docs/adr/0012).
VERSION = "1"
# Requests in flight in one gateway at which Serve adds another, if `gateway_replicas` is a range.
TARGET_REQUESTS = 64


def app_from_args(args: dict[str, str]) -> Application:
    """The application for a Serve config file, or for `serve run safelight.service.app:app_from_args`.

    Serve's own configuration says where HTTP is served. Without the setting `host` that counts as everywhere,
    so that callers need API keys unless `require_api_keys` says otherwise.

    Args:
        args: Settings by name, such as `{"stages": "split"}`.

    Raises:
        BadSetting: A setting is unknown or invalid.
        UnknownModel: There is no such model.
    """
    return build_app(read_settings({"host": ALL_INTERFACES} | args))


def build_app(settings: Settings) -> Application:
    """The application of the gateway, the ledger and the stages. Raises `UnknownModel` or `BadSetting`."""
    return build_sets_app(settings, plan_stages(find_served_models(settings), settings))


def build_sets_app(
    settings: Settings,
    served: Sequence[StageSet],
    others: Sequence[StageSet] = (),
    make_changes: MakeChanges | None = None,
    listener_path: Path | None = None,
) -> Application:
    """The application that serves some sets of stages, and holds others.

    Args:
        settings: The service's settings.
        served: The models that requests can ask for, the default first.
        others: Sets whose deployments run as well: not served yet, or no longer.
        make_changes: How gateways add and remove models; None where they cannot.
        listener_path: Where gateways get the socket on which they serve HTTP themselves; None where Serve's
            proxies do.
    """
    ledger = _ledger(settings).bind(settings)
    sets = (*served, *others)
    names = dict.fromkeys(name for stages in sets for name in stages.deployments)
    stages = [
        _deployment(name, sets, settings).bind(served_by(sets, name)[0], settings, ledger) for name in names
    ]
    gateway = _gateway(settings, served, is_proxied=listener_path is None)
    return gateway.bind(tuple(served), make_changes, settings, listener_path, ledger, *stages)


def _deployment(name: str, sets: Sequence[StageSet], settings: Settings) -> Deployment:
    """The deployment of the stage that is called `name` in any of `sets`."""
    num_models = len({model.id for model in served_by(sets, name)})
    if settings.stages == "colocated":
        kind, replicas, gpus = ColocatedDeployment, settings.denoise_replicas, settings.denoise_gpus
        return _stage(name, kind, replicas, gpus, settings)
    if any(name == stages.encode for stages in sets):
        replicas, gpus = settings.encode_replicas, settings.encode_gpus
        return _stage(name, EncodeDeployment, replicas, gpus, settings, num_models)
    if any(name == stages.decode for stages in sets):
        replicas, gpus = settings.decode_replicas, settings.decode_gpus
        return _stage(name, DecodeDeployment, replicas, gpus, settings, num_models)
    return _stage(name, DenoiseDeployment, settings.denoise_replicas, settings.denoise_gpus, settings)


def _gateway(settings: Settings, served: Sequence[StageSet], is_proxied: bool) -> Deployment:
    minimum, maximum = replica_range("gateway_replicas", settings.gateway_replicas)
    # A gateway does no work of its own, so Serve's rule fits it: scale by requests in flight.
    scaling = (
        {"num_replicas": minimum}
        if minimum == maximum
        else {"autoscaling_config": _range(minimum, maximum, settings) | _by_requests(is_proxied)}
    )
    make = serve.deployment(
        name="Gateway",
        max_ongoing_requests=UNLIMITED_CALLS,
        user_config=pack_sets(served),
        **_options(settings),
        **scaling,
    )
    return _with_version(make(serve.ingress()(GatewayDeployment)))


def _ledger(settings: Settings) -> Deployment:
    # Two ledgers would share out what is reported to them, so a new one starts when the old one has ended.
    options = _options(settings) | {"max_surge_percent": 0}
    make = serve.deployment(name="Ledger", max_ongoing_requests=UNLIMITED_CALLS, **options)
    return _with_version(make(LedgerDeployment))


def _with_version(deployment: Deployment) -> Deployment:
    pinned: Deployment = deployment.options(_internal=True, version=VERSION)
    return pinned


def _stage(
    name: str, stage: type[Any], replicas: str, num_gpus: float, settings: Settings, num_models: int = 1
) -> Deployment:
    """The deployment of one stage.

    Args:
        name: The deployment's name.
        stage: Its class.
        replicas: A number of replicas, or a range such as `1-8`.
        num_gpus: GPUs of one replica, or a fraction of one.
        settings: The service's settings.
        num_models: That it serves; each may have as many images in flight as the settings allow.
    """
    minimum, maximum = replica_range(name, replicas)
    options = _options(settings, num_gpus)
    # a decoder also takes all previews, lest they keep out images that are done
    calls_per_image = 1 + MAX_PREVIEWS if stage is DecodeDeployment else 1
    all_calls = num_models * calls_per_image * settings.max_pictures + STATUS_CALLS
    if minimum == maximum:
        options |= {
            "num_replicas": minimum,
            "max_ongoing_requests": all_calls,
            "max_queued_requests": all_calls,
        }
    else:
        # A replica accepts the images of two ticks. The others wait at the handles, so that a replica that is
        # added later gets some of them. A decoder accepts all: it is called while its images are still being
        # denoised, and images with many steps must not keep out images that are done.
        calls = all_calls if stage is DecodeDeployment else num_models * 2 * settings.max_rows
        options |= {
            "autoscaling_config": _range(minimum, maximum, settings) | _by_work(settings),
            "max_ongoing_requests": calls,
            # A replica that is removed finishes its images first.
            "graceful_shutdown_timeout_s": settings.deadline_seconds,
        }
    return _with_version(serve.deployment(name=name, **options)(stage))


def _range(minimum: int, maximum: int, settings: Settings) -> dict[str, Any]:
    return {
        "min_replicas": minimum,
        "max_replicas": maximum,
        "upscale_delay_s": settings.upscale_delay_seconds,
        "downscale_delay_s": settings.downscale_delay_seconds,
        "metrics_interval_s": METRICS_SECONDS,
        "look_back_period_s": 3 * METRICS_SECONDS,
    }


def _by_requests(is_proxied: bool) -> dict[str, Any]:
    if is_proxied:
        return {"target_ongoing_requests": TARGET_REQUESTS}
    return {
        "policy": {
            "policy_function": "safelight.service.ray_serve.autoscaling:ByRequests",
            "policy_kwargs": {"target_requests": TARGET_REQUESTS},
        }
    }


def _by_work(settings: Settings) -> dict[str, Any]:
    return {
        "policy": {
            "policy_function": "safelight.service.ray_serve.autoscaling:ByWork",
            "policy_kwargs": {"target_seconds": settings.target_seconds},
        }
    }


def _options(settings: Settings, num_gpus: float = 0.0) -> dict[str, Any]:
    """Options of every deployment; `num_gpus` of one replica."""
    return {
        "ray_actor_options": {"num_cpus": REPLICA_CPUS} | ({"num_gpus": num_gpus} if num_gpus else {}),
        "graceful_shutdown_timeout_s": settings.shutdown_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 0.5,  # a death is noticed that late
        # An update starts new replicas before it ends old ones. A machine may have no GPU to spare for that.
        "max_surge_percent": 0 if num_gpus else 100,
        # Few: a checkpoint that cannot be loaded will not load at the next attempt either.
        "max_constructor_retry_count": 2,
        "logging_config": LoggingConfig(enable_access_log=False),
    }
