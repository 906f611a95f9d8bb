"""The composition root: settings to a Ray Serve application."""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from pipeline.catalog import find_model
from service.backend import Backend
from service.deployments import Bookkeeper, Colocated, Denoiser, Gateway, TextEncoder, VaeDecoder
from service.handles import ColocatedBackend, SplitBackend
from service.settings import Settings, read_settings

SMALL_CPU = 0.1  # a logical share: the stages set their threads themselves, so that all of them fit on two cores
ROOM_FOR_QUESTIONS = 64  # health and census must get through to a stage that is full of pictures
MANY = 10_000  # the gateway counts its pictures itself


def app_from_args(args: dict[str, str]) -> Application:
    """For `serve run service.app:app_from_args model=... stages=...` and the `args` of a Serve config file."""
    return build_app(read_settings(args))


def build_app(settings: Settings) -> Application:
    """Raises `pipeline.catalog.UnknownModel`."""
    model = find_model(settings.model)
    make_backend: Callable[..., Backend]
    if settings.stages == "colocated":
        make_backend, stages = ColocatedBackend, [_deployment(Colocated, settings)]
    else:
        make_backend = SplitBackend
        stages = [
            _deployment(TextEncoder, settings),
            _deployment(Denoiser, settings),
            _deployment(VaeDecoder, settings),
        ]
    ledger = _bookkeeper(settings).bind(settings)
    return _gateway(settings).bind(make_backend, model, settings, ledger, *(stage.bind(model, settings, ledger) for stage in stages))


def _gateway(settings: Settings) -> Deployment:
    make = serve.deployment(name="Gateway", max_ongoing_requests=MANY, **_options(settings))
    return make(serve.ingress()(Gateway))


def _bookkeeper(settings: Settings) -> Deployment:
    make = serve.deployment(name="Bookkeeper", max_ongoing_requests=MANY, **_options(settings))
    return make(Bookkeeper)


def _deployment(stage: type[Any], settings: Settings) -> Deployment:
    room = settings.max_pictures + ROOM_FOR_QUESTIONS
    make = serve.deployment(name=stage.__name__, max_ongoing_requests=room, max_queued_requests=room, **_options(settings))
    return make(stage)


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": SMALL_CPU},
        "graceful_shutdown_timeout_s": settings.shutdown_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2.0,
        "max_constructor_retry_count": 2,  # a bad checkpoint does not get better
        "logging_config": LoggingConfig(enable_access_log=False),
    }
