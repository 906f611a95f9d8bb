"""`/v1/admin/keys`: make, list, show, revoke and rotate the keys of the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request

from safelight.service.errors import InvalidRequest, KeyMissing, KeysUnavailable
from safelight.service.http.admin.schemas import Key, KeyList, KeyWithSecret, NewKey, Rotation
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.http.operator_bodies import describe_body, read_body
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from safelight.service.keys.api_key import ApiKey
    from safelight.service.keys.database_source import DatabaseSource

PATH = "/v1/admin/keys"
NO_STORE = {"cache-control": "no-store"}  # of answers with a secret
FAILURES: dict[int | str, dict[str, Any]] = {
    **{status: ERRORS[status] for status in (400, 401, 404, 503)},
    **OTHER_ERRORS,
}


def add_key_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes, if there are keys in the database and an operator who can be told from others."""
    access = gateway.access
    if access is None or access.source is None or not gateway.settings.admin_key.get_secret_value():
        return
    _add_reading(app, access.source)
    _add_changes(app, gateway.settings, access.source)


def _add_reading(app: FastAPI, source: DatabaseSource) -> None:
    @app.get(PATH, summary="All API keys, the oldest first", responses=FAILURES)
    async def list_keys() -> KeyList:
        async with _answering():
            return KeyList(data=[Key(**key.describe()) for key in await source.keys.list_all()])

    @app.get(PATH + "/{name}", summary="One API key, by its id or name", responses=FAILURES)
    async def get_key(name: str) -> Key:
        async with _answering():
            return Key(**(await source.keys.get(name)).describe())


def _add_changes(app: FastAPI, settings: Settings, source: DatabaseSource) -> None:
    from safelight.service.keys.api_key import read_spec

    @app.post(
        PATH,
        summary="Make an API key; its secret is in this answer only",
        status_code=201,
        response_model=KeyWithSecret,
        responses=FAILURES,
        openapi_extra=describe_body(NewKey),
    )
    async def create_key(request: Request) -> JSONResponse:
        body = await read_body(request, settings, NewKey)
        async with _answering():
            key, secret = await source.keys.create(read_spec(body.model_dump()))
            await source.refresh(0.0)
        return _with_secret(key, secret, status=201)

    @app.delete(PATH + "/{name}", summary="Revoke an API key, for ever", responses=FAILURES)
    async def revoke_key(name: str) -> Key:
        async with _answering():
            key = await source.keys.revoke(name)
            await source.refresh(0.0)
        return Key(**key.describe())

    @app.post(
        PATH + "/{name}/rotate",
        summary="Give an API key a new secret; it is in this answer only",
        response_model=KeyWithSecret,
        responses=FAILURES,
        openapi_extra=describe_body(Rotation),
    )
    async def rotate_key(request: Request, name: str) -> JSONResponse:
        body = await read_body(request, settings, Rotation)
        async with _answering():
            key, secret = await source.keys.rotate(name, body.overlap_seconds)
            await source.refresh(0.0)
        return _with_secret(key, secret, status=200)


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Raise the errors of keys and of their database as those of the service."""
    from safelight.service.database.connection import DatabaseFailed
    from safelight.service.keys.api_key import BadKey, KeyNotFound

    try:
        yield
    except BadKey as error:
        raise InvalidRequest(f"{error}.", error.param or None) from None
    except KeyNotFound as error:
        raise KeyMissing(f"{error}.") from None
    except DatabaseFailed as error:
        raise KeysUnavailable() from error


def _with_secret(key: ApiKey, secret: str, status: int) -> JSONResponse:
    body = KeyWithSecret(**key.describe(), secret=secret)
    return JSONResponse(body.model_dump(mode="json"), status, headers=NO_STORE)
