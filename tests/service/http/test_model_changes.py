"""The operator's routes that change the models: who may, what they answer, and that they finish."""

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from safelight.service.errors import ChangeFailed, ChangeUnderWay
from safelight.service.http.model_changes import ModelToAdd, _finish
from safelight.service.settings import Settings
from tests.fakes import MODEL
from tests.service.two_models import OTHER, TwoModels, two_models

KEY = {"authorization": "Bearer secret"}
SETTINGS = Settings(admin_key="secret")


class FakeChanges:
    """Keeps what it is asked for; raises `errors` first."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.added: list[ModelToAdd] = []
        self.removed: list[str] = []

    async def add(self, model: ModelToAdd) -> str:
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.sleep(0)
        self.added.append(model)
        return OTHER.id

    async def remove(self, model_id: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.removed.append(model_id)


@pytest.fixture
def changes() -> FakeChanges:
    return FakeChanges()


@pytest.fixture
def service(changes: FakeChanges) -> Iterator[TwoModels]:
    with two_models(SETTINGS, changes) as service:
        yield service


def test_a_model_is_added_with_what_the_request_says_of_it(service: TwoModels, changes: FakeChanges) -> None:
    body = {"model": "/models/turbo", "served_name": "shop/turbo", "default_steps": "4"}
    answer = service.client.post("/v1/models", json=body, headers=KEY)
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["defaults"]["num_inference_steps"]) == (OTHER.id, 2)
    assert [added.model_dump(exclude_none=True) for added in changes.added] == [body]


@pytest.mark.parametrize("name", ["shop/turbo", "turbo-folder"])
def test_a_model_is_removed_by_any_of_its_names(service: TwoModels, changes: FakeChanges, name: str) -> None:
    answer = service.client.delete(f"/v1/models/{name}", headers=KEY)
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": "shop/turbo", "object": "model", "deleted": True},
    )
    assert changes.removed == [OTHER.id]


def test_a_model_that_is_not_served_cannot_be_removed(service: TwoModels, changes: FakeChanges) -> None:
    answer = service.client.delete("/v1/models/sdxl", headers=KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert changes.removed == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model is required."),
        ({"model": 5}, "model must be a valid string."),
        ({"model": ""}, "model must have at least 1 character."),
        ({"model": "x", "name": "y"}, "name is not a field of this request; allowed: model, served_name, "),
    ],
)
def test_a_request_that_is_wrong_is_refused(
    service: TwoModels, changes: FakeChanges, body: dict[str, object], message: str
) -> None:
    answer = service.client.post("/v1/models", json=body, headers=KEY)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert changes.added == []


@pytest.mark.parametrize("error", [ChangeUnderWay(), ChangeFailed("other was not added: no.", "model")])
def test_a_change_that_fails_says_why(service: TwoModels, changes: FakeChanges, error: ChangeFailed) -> None:
    for method, path in (("POST", "/v1/models"), ("DELETE", "/v1/models/shop/turbo")):
        changes.errors = [error]
        answer = service.client.request(method, path, json={"model": "x"}, headers=KEY)
        assert (answer.status_code, answer.json()["error"]) == (409, error.body()["error"])


def test_only_the_operator_changes_models(service: TwoModels, changes: FakeChanges) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert service.client.post("/v1/models", json={"model": "x"}, headers=headers).status_code == 401
        assert service.client.delete("/v1/models/fake-8", headers=headers).status_code == 401
    assert (changes.added, changes.removed) == ([], [])


def test_without_an_admin_key_nobody_does(changes: FakeChanges) -> None:
    with two_models(Settings(), changes) as service:
        for answer in (
            service.client.post("/v1/models", json={"model": "x"}),
            service.client.delete(f"/v1/models/{MODEL.id}"),
        ):
            assert answer.status_code == 403
            assert "set admin_key" in answer.json()["error"]["message"]
    assert (changes.added, changes.removed) == ([], [])


def test_a_service_whose_models_are_fixed_says_so() -> None:
    with two_models(SETTINGS) as service:
        answer = service.client.post("/v1/models", json={"model": "x"}, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "models_are_fixed")
        assert "configuration" in answer.json()["error"]["message"]


async def test_a_change_goes_on_without_its_client_and_outside_of_its_request() -> None:
    """Ray cancels what was called in the context of a request whose client has gone."""
    request_id: ContextVar[str] = ContextVar("request_id", default="none")
    steps: list[str] = []
    may_end = asyncio.Event()

    async def change() -> None:
        steps.append(request_id.get())
        await may_end.wait()
        steps.append("done")

    request_id.set("mine")
    answering = asyncio.ensure_future(_finish(change()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    may_end.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert steps == ["none", "done"]
