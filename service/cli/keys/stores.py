"""Where `safelight keys` has its keys: in the database, or in a running service by its admin API."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import SecretStr

from safelight.service.cli import UserError
from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.database.locations import find_database
from safelight.service.database.migrate import migrate
from safelight.service.keys.api_key import KeyNotFound, KeySpec
from safelight.service.keys.database_keys import DatabaseKeys

T = TypeVar("T")
Key = dict[str, Any]
PATH = "/v1/admin/keys"
SECONDS = 30.0


class LocalKeys:
    """The keys in the database of the setting, which is made if there is none."""

    def __init__(self, setting: SecretStr):
        try:
            self._location = find_database(setting.get_secret_value())
        except RuntimeError as error:
            raise UserError(f"{error}: say in SAFELIGHT_DATABASE where keys are kept") from None

    def create(self, spec: KeySpec) -> Key:
        key, secret = self._run(lambda keys: keys.create(spec))
        return key.describe() | {"secret": secret}

    def list_all(self) -> list[Key]:
        return [key.describe() for key in self._run(lambda keys: keys.list_all())]

    def get(self, name: str) -> Key:
        return self._run(lambda keys: keys.get(name)).describe()

    def revoke(self, name: str) -> Key:
        return self._run(lambda keys: keys.revoke(name)).describe()

    def rotate(self, name: str, overlap_seconds: float) -> Key:
        key, secret = self._run(lambda keys: keys.rotate(name, overlap_seconds))
        return key.describe() | {"secret": secret}

    def _run(self, use: Callable[[DatabaseKeys], Awaitable[T]]) -> T:
        async def run() -> T:
            await migrate(self._location)
            database = Database(self._location)
            try:
                return await use(DatabaseKeys(database))
            finally:
                await database.close()

        try:
            return asyncio.run(run())
        except (DatabaseFailed, KeyNotFound) as error:
            raise UserError(str(error)) from None


class RemoteKeys:
    """The keys of the service at `url`."""

    def __init__(self, url: str, admin_key: SecretStr):
        if not admin_key.get_secret_value():
            raise UserError("--url needs the service's admin key in SAFELIGHT_ADMIN_KEY")
        self._url = url.rstrip("/") + PATH
        self._headers = {"authorization": f"Bearer {admin_key.get_secret_value()}"}

    def create(self, spec: KeySpec) -> Key:
        limits = {name: getattr(spec.limits, name) for name in spec.limits.__slots__}
        others = {name: getattr(spec, name) for name in ("name", "weight", "max_priority", "expires")}
        return self._send("POST", "", others | limits | {"models": list(spec.models)})

    def list_all(self) -> list[Key]:
        keys: list[Key] = self._send("GET", "")["data"]
        return keys

    def get(self, name: str) -> Key:
        return self._send("GET", f"/{quote(name, safe='')}")

    def revoke(self, name: str) -> Key:
        return self._send("DELETE", f"/{quote(name, safe='')}")

    def rotate(self, name: str, overlap_seconds: float) -> Key:
        return self._send("POST", f"/{quote(name, safe='')}/rotate", {"overlap_seconds": overlap_seconds})

    def _send(self, method: str, path: str, body: Key | None = None) -> Key:
        try:
            answer = httpx2.request(
                method, self._url + path, json=body, headers=self._headers, timeout=SECONDS
            )
            content: Key = answer.json()
        except httpx2.InvalidURL as error:
            raise UserError(f"--url: {error}") from None
        except httpx2.HTTPError as error:
            raise UserError(f"no answer from {self._url}: {error or type(error).__name__}") from None
        except ValueError:
            raise UserError(f"{self._url} answered with status {answer.status_code} and no JSON") from None
        if answer.status_code >= 400:
            raise UserError(str(content.get("error", {}).get("message", f"status {answer.status_code}")))
        return content
