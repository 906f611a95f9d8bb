"""The operator's routes that add, replace and remove models while the service runs."""

import asyncio
import time
from collections.abc import Coroutine
from contextvars import Context
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from safelight.service.errors import ChangesRefused
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.http.operator_bodies import describe_body, read_body
from safelight.service.http.schemas import Model
from safelight.service.http.translation import describe_model, describe_moderation

T = TypeVar("T")
CHANGE_ERRORS = {400: ERRORS[400], 401: ERRORS[401], **OTHER_ERRORS}
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class ModelToAdd(BaseModel):
    """A model to be served. The fields but `model` are settings of these names, for this model alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text = Field(
        description="An embedded model's name, a checkpoint folder on the machine of the service, or an id "
        "in its Hugging Face cache. A model that is served under this name is replaced."
    )
    served_name: Text | None = None
    default_steps: Text | None = None
    default_guidance: Text | None = None
    default_solver: Text | None = None
    default_size: Text | None = None


class RemovedModel(BaseModel):
    """OpenAI's answer to the deletion of a model."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelChanges(Protocol):
    """Changes the models of a service."""

    async def add(self, model: ModelToAdd) -> str:
        """Serve a model, in place of the one of its name if there is one; returns its id.

        Returns when every gateway serves it. Raises `ServiceError`; the service then goes on as before.
        """
        ...

    async def remove(self, model_id: str) -> None:
        """Serve a model no more; returns when its images are finished and its stages have been told to end.

        Raises `ServiceError`.
        """
        ...


def add_change_routes(app: FastAPI, gateway: Gateway, changes: ModelChanges | None) -> None:
    """Add the routes, for the bearer of the admin key; without `changes` and without that key they refuse."""
    key = gateway.settings.admin_key

    def allowed() -> ModelChanges:
        if changes is None:
            raise ChangesRefused(
                "The models of this service are those of its configuration: change the setting model there."
            )
        if not key.get_secret_value():
            raise ChangesRefused("Models are added and removed only with an admin key: set admin_key.")
        return changes

    @app.post(
        "/v1/models",
        openapi_extra=describe_body(ModelToAdd),
        summary="Serve another model, or a new version of one, while the service runs",
        responses=CHANGE_ERRORS,
    )
    async def add_model(request: Request) -> Model:
        change = allowed()
        model_id = await _finish(change.add(await read_body(request, gateway.settings, ModelToAdd)))
        names = gateway.names
        model = describe_model(names.find(model_id, is_strict=True), names, int(time.time()), attention=None)
        return model.model_copy(update={"moderation": describe_moderation(gateway.settings)})

    @app.delete(
        "/v1/models/{model_id:path}",
        summary="Serve a model no more, when its images are finished",
        responses=CHANGE_ERRORS,
    )
    async def remove_model(model_id: str) -> RemovedModel:
        change = allowed()
        model = gateway.names.find(model_id, is_strict=True)
        await _finish(change.remove(model.id))
        return RemovedModel(id=model.id)


async def _finish(change: Coroutine[Any, Any, T]) -> T:
    """The result of a change, which goes on if the client hangs up.

    Serve then cancels the request and, by what its context holds, all calls that were made for it.
    """
    return await asyncio.shield(asyncio.get_running_loop().create_task(change, context=Context()))
