"""A gateway that asks for API keys, over a fake backend, with keys of every state in a SQLite file."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from safelight.service.database.connection import Database
from safelight.service.database.locations import find_database
from safelight.service.database.migrate import migrate
from safelight.service.http.gateway import build_gateway
from safelight.service.keys.api_key import ApiKey, KeyLimits, KeySpec
from safelight.service.keys.database_keys import DatabaseKeys
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.openapi_answers import check_answers

ADMIN_KEY = "the admin key of these tests"
METRICS_KEY = "the metrics key of these tests"
PAST = 1.0


@dataclass(frozen=True)
class Keys:
    """The keys of a service by their names, and their secrets."""

    keys: dict[str, ApiKey] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[name]}"}


def make_settings(folder: Path, **changes: Any) -> Settings:
    values = {
        "require_api_keys": "always",
        "database": str(folder),
        "admin_key": ADMIN_KEY,
        "metrics_key": METRICS_KEY,
    }
    return Settings(**values | changes)


def make_keys(folder: Path, *specs: KeySpec) -> Keys:
    """Make these keys, beside `alice` and one for each reason why a key does not hold."""
    with ThreadPoolExecutor(1) as pool:  # a browser's tests have a loop in this thread
        return pool.submit(asyncio.run, _make_keys(folder, specs)).result()


async def _make_keys(folder: Path, specs: tuple[KeySpec, ...]) -> Keys:
    location = find_database(str(folder))
    await migrate(location)
    database, result = Database(location), Keys()
    keys = DatabaseKeys(database)
    expired = KeySpec("expired", expires=time.time() - 1)
    for spec in (KeySpec("alice"), expired, KeySpec("revoked"), KeySpec("rotated"), *specs):
        result.keys[spec.name], result.secrets[spec.name] = await keys.create(spec)
    await keys.revoke("revoked")
    _, result.secrets["renewed"] = await keys.rotate("rotated", 0.0)
    await database.close()
    return result


@contextmanager
def keyed_client(settings: Settings, backend: FakeBackend | None = None) -> Iterator[TestClient]:
    """A client of a gateway with these settings, whose answers are held to the OpenAPI schema."""
    with TestClient(make_app(settings, backend)) as client:
        check_answers(client)
        yield client


def make_app(settings: Settings, backend: FakeBackend | None = None) -> FastAPI:
    return build_gateway(backend or FakeBackend(), MODEL, settings)


LIMITED = KeySpec("limited", limits=KeyLimits(requests_per_minute=3))
