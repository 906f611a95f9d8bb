"""A gateway that serves two models, each with a backend of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.testclient import TestClient

from safelight.service.http.gateway import build_models_gateway
from safelight.service.http.model_changes import ModelChanges
from safelight.service.model_backends import ModelBackend, ModelBackends
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.openapi_answers import check_answers

OTHER = replace(
    MODEL,
    id="shop/turbo",
    checkpoint_id="turbo-folder",
    path=Path("/elsewhere"),
    sizes=((16, 16), (16, 8)),
    num_steps=2,
    guidance_scale=1.0,
    solver="ddim",
    solvers=("ddim", "heun"),
    spacings=("trailing", "linspace"),
)


@dataclass(frozen=True)
class TwoModels:
    """The gateway's client and parts."""

    client: TestClient
    backends: ModelBackends
    first: FakeBackend
    second: FakeBackend


@contextmanager
def two_models(settings: Settings | None = None, changes: ModelChanges | None = None) -> Iterator[TwoModels]:
    """A gateway that serves `MODEL` and `OTHER`."""
    first, second = FakeBackend(), FakeBackend()
    backends = ModelBackends([ModelBackend(MODEL, first), ModelBackend(OTHER, second)])
    app = build_models_gateway(backends, settings or Settings(), changes=changes)
    with TestClient(app) as client:
        check_answers(client)
        yield TwoModels(client, backends, first, second)
        for backend in (first, second):
            backend.gate.set()
