"""The Ray Serve deployment of the gateway, whose models change while it runs."""

import asyncio
import base64
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from safelight.service.backend import Backend
from safelight.service.http.gateway import build_models_gateway, on_models_change
from safelight.service.http.model_changes import ModelChanges
from safelight.service.http.server import HttpServer
from safelight.service.model_backends import ModelBackend, ModelBackends
from safelight.service.ray_serve.autoscaling import IN_FLIGHT
from safelight.service.ray_serve.backends import ColocatedBackend, RemoteLedger, SplitBackend
from safelight.service.runtime.shared_listener import receive_listener
from safelight.service.settings import Settings, may_sleep
from safelight.service.stage_sets import StageSet
from safelight.service.telemetry.logs import configure_logs
from safelight.service.telemetry.tracing import make_tracing
from safelight.service.usage.reporter import INTERVAL_SECONDS

Handle = DeploymentHandle[Any]
MakeChanges = Callable[[Callable[[], tuple[StageSet, ...]]], ModelChanges]


class GatewayDeployment:
    """The ingress. The app is built on the replica, because an app with middleware cannot be pickled.

    Args:
        served: The models and their stages, the default first.
        make_changes: Creates what adds and removes models, from a function that returns the served ones.
        settings: The service's settings.
        listener_path: Where a gateway gets the socket on which it serves HTTP itself; None where Serve's
            proxies do.
        ledger: Handle of the ledger.
        stages: Handles of the stages' deployments, so that Serve deploys them. Handles are made by name here.
    """

    def __init__(
        self,
        served: tuple[StageSet, ...],
        make_changes: MakeChanges | None,
        settings: Settings,
        listener_path: Path | None,
        ledger: Handle,
        *stages: Handle,
    ):
        configure_logs(settings, "gateway")
        self._ledger = RemoteLedger(ledger)
        self._settings = settings
        self._listener_path = listener_path
        self._served = served
        self._entries: dict[object, ModelBackend] = {}  # by the key of a set
        self._backends = ModelBackends(self._make_entries())
        self._changes = None if make_changes is None else make_changes(lambda: self._served)

    def __serve_build_asgi_app__(self) -> FastAPI:
        path = self._listener_path
        self._app = build_models_gateway(
            self._backends,
            self._settings,
            self._ledger,
            proxied=path is None,
            tracing=make_tracing(self._settings, "gateway"),
            changes=self._changes,
            listen=None if path is None else partial(receive_listener, path),
        )
        return self._app

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve if the number of gateways is a range: it sees no requests without its proxy."""
        server: HttpServer | None = getattr(self._app.state, "server", None)
        return {IN_FLIGHT: 0.0 if server is None else float(server.requests_in_flight)}

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve other models from now on. Called by Serve, at the start and when the application changes."""
        served = unpack_sets(config)
        if [stages.key for stages in served] == [stages.key for stages in self._served]:
            return
        self._served = served
        self._backends.replace(self._make_entries())
        on_models_change(self._app)

    async def count_retired_images(self) -> int:
        """How many images are in flight with stages that are no longer served."""
        return self._backends.retired_in_flight

    async def drain(self) -> None:
        """Refuse new requests, and give back jobs.

        Returns when no image is in flight and the ledger has what these used.
        """
        gateway = self._app.state.gateway
        if gateway.jobs is not None:
            await gateway.jobs.stop()
        await gateway.dispatcher.drain()
        await asyncio.to_thread(gateway.reporter.deliver)
        await asyncio.sleep(INTERVAL_SECONDS)  # in which the stages report, before the ledger ends with them

    def _make_entries(self) -> list[ModelBackend]:
        """The served models with their backends; a set that was served before keeps its backend."""
        self._entries = {
            stages.key: self._entries.get(stages.key)
            or ModelBackend(stages.model, make_backend(stages, self._settings))
            for stages in self._served
        }
        return list(self._entries.values())


def make_backend(stages: StageSet, settings: Settings, application: str | None = None) -> Backend:
    """The backend that calls the deployments of `stages`.

    Args:
        stages: The stages.
        settings: The service's settings.
        application: The Serve application that has them; None: that of the calling replica.
    """
    if settings.stages == "colocated":
        colocated = serve.get_deployment_handle(stages.denoise, application)
        return ColocatedBackend(colocated, may_sleep(settings))
    names = stages.encode, stages.denoise, stages.decode
    encoder, denoiser, decoder = (serve.get_deployment_handle(name, application) for name in names)
    return SplitBackend(encoder, denoiser, decoder, may_sleep(settings))


def pack_sets(served: Sequence[StageSet]) -> dict[str, str]:
    """The sets as a `user_config`, which Serve hands to every gateway, also to those that start later."""
    return {"served": base64.b64encode(pickle.dumps(tuple(served))).decode("ascii")}


def unpack_sets(config: dict[str, str]) -> tuple[StageSet, ...]:
    """The sets of `pack_sets`."""
    sets: tuple[StageSet, ...] = pickle.loads(base64.b64decode(config["served"]))
    return sets
