"""`/v1/admin/keys`: what it makes, lists, changes and refuses, and that a change holds at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.service.database.connection import Database, DatabaseFailed
from safelight.service.http.gateway import build_gateway
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.http.keyed import ADMIN_KEY, Keys, keyed_client, make_keys, make_settings

PATH = "/v1/admin/keys"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
BODY = {"prompt": "p"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def client(keys: Keys, tmp_path: Path) -> Iterator[TestClient]:
    with keyed_client(make_settings(tmp_path)) as client:
        client.headers.update(ADMIN)
        yield client


def status_with(client: TestClient, secret: str) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    return client.post(ROUTE, json=BODY, headers=headers).status_code


def test_a_key_is_made_used_rotated_and_revoked(client: TestClient) -> None:
    choices: dict[str, Any] = {
        "name": "bob",
        "weight": 2.0,
        "max_priority": 3,
        "requests_per_minute": 60,
        "images_per_day": 100,
        "device_seconds_per_day": 1200.5,
        "spend_per_month": 900.75,
        "models": [MODEL.id],
        "expires": 4e9,
    }
    answer = client.post(PATH, json=choices)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    key, secret = answer.json(), answer.json()["secret"]
    assert {name: key[name] for name in choices} == choices
    assert key["prefixes"] == [secret[:11]]
    assert status_with(client, secret) == 200
    shown = client.get(f"{PATH}/bob").json()
    assert (
        shown == client.get(f"{PATH}/{key['id']}").json() == {k: v for k, v in key.items() if k != "secret"}
    )
    assert shown in client.get(PATH).json()["data"]
    rotated = client.post(f"{PATH}/bob/rotate", json={"overlap_seconds": 3600}).json()
    assert status_with(client, secret) == status_with(client, rotated["secret"]) == 200
    replaced = client.post(f"{PATH}/bob/rotate", json={"overlap_seconds": 0}).json()
    assert status_with(client, rotated["secret"]) == 401
    assert status_with(client, replaced["secret"]) == 200
    revoked = client.delete(f"{PATH}/{key['id']}")
    assert revoked.status_code == 200 and revoked.json()["revoked"] is not None
    assert status_with(client, replaced["secret"]) == 401
    for text in (client.get(PATH).text, revoked.text):
        assert secret not in text and replaced["secret"] not in text


def test_the_overlap_is_a_day_by_default(client: TestClient, keys: Keys) -> None:
    assert client.post(f"{PATH}/alice/rotate", json={}).status_code == 200
    assert status_with(client, keys.secrets["alice"]) == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "", {}, 400, "name"),
        ("POST", "", {"name": ""}, 400, "name"),
        ("POST", "", {"name": "alice"}, 400, "name"),
        ("POST", "", {"name": "b", "images_per_day": -1}, 400, "images_per_day"),
        ("POST", "", {"name": "b", "images_per_day": "many"}, 400, "images_per_day"),
        ("POST", "", {"name": "b", "models": "x"}, 400, "models"),
        ("POST", "", {"name": "b", "colour": 1}, 400, "colour"),
        ("POST", "", {"name": "b", "expires": -5}, 400, "expires"),
        ("POST", "", [], 400, None),
        ("POST", "/alice/rotate", {"overlap_seconds": -1}, 400, "overlap_seconds"),
        ("POST", "/alice/rotate", {"overlap_seconds": 1e9}, 400, "overlap_seconds"),
        ("POST", "/revoked/rotate", {}, 404, None),
        ("POST", "/nobody/rotate", {}, 404, None),
        ("GET", "/nobody", None, 404, None),
        ("DELETE", "/nobody", None, 404, None),
        ("PUT", "/alice", {}, 405, None),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: TestClient, method: str, path: str, body: object, status: int, param: str | None
) -> None:
    options: dict[str, Any] = {} if body is None else {"json": body}
    answer = client.request(method, PATH + path, **options)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    if status == 404:
        assert answer.json()["error"]["code"] == "api_key_not_found"
    assert len(client.get(PATH).json()["data"]) == 4


def test_a_database_that_is_away_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise DatabaseFailed("postgresql://host: away")

    monkeypatch.setattr(Database, "read", away)
    monkeypatch.setattr(Database, "write", away)
    for answer in (client.get(PATH), client.post(PATH, json={"name": "b"}), client.delete(f"{PATH}/alice")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unavailable")
        assert answer.headers["retry-after"] == "5" and "postgresql" not in answer.text


def test_without_a_database_or_an_admin_key_there_are_no_routes(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    file = str(tmp_path / "keys.json")
    for settings in (
        make_settings(tmp_path, database="", api_keys_file=file),
        make_settings(tmp_path, admin_key=""),
    ):
        client = TestClient(build_gateway(FakeBackend(), MODEL, settings))
        assert client.get(PATH, headers=ADMIN).status_code == 404
