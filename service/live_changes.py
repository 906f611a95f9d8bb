"""Adds and removes models of a running service, by deploying its Serve application again.

A change runs in an actor of its own, so that it blocks no gateway, and under a name, so that there is one at
a time. Serve leaves alone every deployment that is configured as before (docs/adr/0012).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.errors import ChangeFailed, ChangeUnderWay, InvalidRequest, ServiceError
from safelight.service.http.model_changes import ModelToAdd
from safelight.service.http.readiness import make_warm_up_image
from safelight.service.messages import ImageFormat, RequestContext
from safelight.service.runtime.causes import first_cause
from safelight.service.served_model import find_model_to_add, read_options
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings
from safelight.service.stage_sets import StageSet, plan_stages, with_set, without_model
from safelight.service.telemetry.logs import configure_logs

NAMESPACE, ACTOR = "safelight", "model-change"
POLL_SECONDS = 0.2
NAME_ATTEMPTS = 10
CALL_SECONDS = 10.0
Served = tuple[StageSet, ...]


@dataclass(frozen=True)
class LiveChanges:
    """The `ModelChanges` of a gateway.

    Args:
        settings: The service's settings.
        application: The name of the Serve application.
        listener_path: Where gateways get the socket on which they serve HTTP.
        served: Returns the models that the gateway serves.
    """

    settings: Settings
    application: str
    listener_path: Path
    served: Callable[[], Served]

    async def add(self, model: ModelToAdd) -> str:
        model_id: str = await self._run("add", model)
        return model_id

    async def remove(self, model_id: str) -> None:
        if len(self.served()) == 1:
            raise ChangeFailed(f"{model_id} is the only model; add another before it is removed.", "model")
        await self._run("remove", model_id)

    async def _run(self, method: str, argument: object) -> Any:
        import ray

        actor = await self._start_actor()
        try:
            result = await getattr(actor, method).remote(argument)
        finally:
            ray.kill(actor)
        if isinstance(result, ServiceError):
            raise result
        return result

    async def _start_actor(self) -> Any:
        """The actor of a change. Raises `ChangeUnderWay` if its name is taken, and not only for a moment."""
        import ray

        kind: Any = ray.remote(ModelChange).options(name=ACTOR, namespace=NAMESPACE, num_cpus=0)
        for _ in range(NAME_ATTEMPTS):
            try:
                return kind.remote(self.settings, self.application, self.listener_path, self.served())
            except ValueError:  # Ray frees the name of an actor some time after its end
                await asyncio.sleep(POLL_SECONDS)
        raise ChangeUnderWay()


class ModelChange:
    """One change, in an actor. Its methods return a `ServiceError` instead of raising it.

    Args:
        settings: The service's settings.
        application: The name of the Serve application.
        listener_path: Where gateways get the socket on which they serve HTTP.
        served: The models that are served now.
    """

    def __init__(self, settings: Settings, application: str, listener_path: Path, served: Served):
        configure_logs(settings, "model-change")
        self._settings = settings
        self._application = application
        self._listener_path = listener_path
        self._served = served

    def add(self, request: ModelToAdd) -> str | ServiceError:
        """Start the stages of a model, draw an image, serve it, and end the stages that it replaces."""
        try:
            model = find_model_to_add(self._settings, request.model_dump(exclude_none=True))
            self._check(request.model)
            others = without_model(self._served, model.id)
            self._refuse_other_names(model, others)
            [stages] = plan_stages([model], self._settings, self._served)
        except (UnknownModel, BadSetting) as error:
            return InvalidRequest(str(error), "model")
        except ServiceError as error:
            return error
        try:
            self._deploy(self._served, [stages])
            self._draw_warm_up_image(stages)
            self._serve(with_set(self._served, stages))
        except Exception as error:  # Ray raises plain `Exception`s
            self._deploy(self._served)
            return ChangeFailed(
                f"{model.id} was not added: {first_cause(str(error) or repr(error))}", "model"
            )
        return model.id

    def remove(self, model_id: str) -> str | ServiceError:
        """Serve a model no more, and end those of its stages that no other model uses."""
        try:
            self._serve(without_model(self._served, model_id))
        except Exception as error:
            return ChangeFailed(
                f"{model_id} was not removed: {first_cause(str(error) or repr(error))}", "model"
            )
        return model_id

    def _serve(self, target: Served) -> None:
        """Serve `target`; returns when the images of the other models are finished and their stages end."""
        self._deploy(target, self._served)
        self._wait_for_retired_images()
        self._deploy(target)

    def _deploy(self, served: Sequence[StageSet], others: Sequence[StageSet] = ()) -> None:
        """Deploy the application; returns when all its stages run and all gateways serve `served`."""
        from ray import serve

        from safelight.service.app import build_sets_app

        changes = partial(LiveChanges, self._settings, self._application, self._listener_path)
        app = build_sets_app(self._settings, served, others, changes, self._listener_path)
        try:
            serve.run(app, name=self._application, route_prefix="/")
        except RuntimeError as error:
            application = serve.status().applications[self._application]
            reports = [stage.message for stage in application.deployments.values()]
            raise RuntimeError(first_cause(*reports, str(error))) from None

    def _draw_warm_up_image(self, stages: StageSet) -> None:
        """Raise what keeps the model from drawing."""
        from safelight.service.ray_serve.gateway_deployment import make_backend

        backend = make_backend(stages, self._settings, self._application)
        image = make_warm_up_image(stages.model)
        drawing = backend.generate(image, ImageFormat(), RequestContext(model=stages.model.id))
        asyncio.run(asyncio.wait_for(drawing, self._settings.deadline_seconds))

    def _wait_for_retired_images(self) -> None:
        """Return when no gateway has an image in flight whose stages are no longer served.

        An image has a deadline, so this ends.
        """
        from ray import serve

        gateways = serve.get_deployment_handle("Gateway", self._application)
        give_up = time.monotonic() + self._settings.deadline_seconds + CALL_SECONDS
        while time.monotonic() < give_up:
            if not sum(gateways.broadcast("count_retired_images").results(timeout_s=CALL_SECONDS)):
                return
            time.sleep(POLL_SECONDS)

    def _check(self, name: str) -> None:
        """Raise `BadSetting` for a folder that cannot be served, before a stage would fail on it."""
        from safelight.pipeline.assembly.check import check_folder

        if faults := check_folder(name, read_options(self._settings)).faults:
            raise BadSetting("; ".join(faults))

    def _refuse_other_names(self, model: ModelInfo, others: Served) -> None:
        """Raise `BadSetting` if another model has the id as one of its names."""
        if taken := [other.model.id for other in others if model.id in other.model.names]:
            raise BadSetting(f"{model.id} is a name of {taken[0]}, which is served; choose a served_name")
