"""Fixtures: a gateway over a fake backend."""

from collections.abc import Iterator
from typing import Final

import pytest
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.openapi_answers import check_answers

ROUTE: Final = "/v1/images/generations"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        check_answers(client)
        yield client
        backend.gate.set()
