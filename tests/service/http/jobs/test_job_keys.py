"""Jobs of API keys: each sees its own, and is charged for what it gets."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from safelight.pipeline.params import Share
from safelight.service.database.connection import Database
from safelight.service.database.locations import find_database
from safelight.service.errors import StageFailed
from safelight.service.jobs import queue, runner
from safelight.service.keys.api_key import KeyLimits, KeySpec
from safelight.service.keys.database_keys import DatabaseKeys
from tests.service.conftest import ROUTE
from tests.service.http.jobs.service import ASYNC, BODY, JOBS, Service, make_settings, serving
from tests.service.http.keyed import Keys, make_keys

LIMITED = KeySpec("limited", weight=3.0, limits=KeyLimits(images_per_day=3))
NARROW = KeySpec("narrow", models=("another-model",))
KEY = {"idempotency-key": "k"}


@dataclass
class KeyedService(Service):
    """A gateway that asks for keys."""

    keys: Keys
    folder: Path

    def remaining(self) -> int:
        """What is left of the images of the limited key today."""
        response = self.client.post(ROUTE, json=BODY | {"n": 10}, headers=self.keys.bearer("limited"))
        assert response.status_code == 429
        return 3 - int(response.json()["error"]["message"].partition(": ")[2].partition(" of")[0])


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyedService]:
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner, "MAX_BACKOFF_SECONDS", 0.0)
    keys = make_keys(tmp_path / "database", LIMITED, NARROW, KeySpec("bob"))
    settings = make_settings(tmp_path, require_api_keys="always", key_refresh_seconds=0.01)
    with serving(settings) as plain:
        yield KeyedService(plain.app, plain.client, plain.backend, plain.records, keys, tmp_path)


def test_a_key_sees_its_own_jobs(keyed: KeyedService) -> None:
    alice, bob = keyed.keys.bearer("alice"), keyed.keys.bearer("bob")
    path = keyed.submit(alice)
    keyed.wait(path, headers=alice)
    job_id = path.rpartition("/")[2]
    for response in (
        keyed.client.get(path, headers=bob),
        keyed.client.delete(path, headers=bob),
        keyed.client.get(f"{path}/content", headers=bob),
        keyed.client.get(path, headers=bob | {"accept": "text/event-stream"}),
        keyed.client.get(f"{JOBS}?after={job_id}", headers=bob),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
    assert keyed.client.get(JOBS, headers=bob).json()["data"] == []
    assert [job["id"] for job in keyed.client.get(JOBS, headers=alice).json()["data"]] == [job_id]
    for route in (path, JOBS, f"{path}/content"):
        assert keyed.client.get(route).status_code == 401


def test_a_job_has_the_share_of_its_key(keyed: KeyedService) -> None:
    limited = keyed.keys.bearer("limited")
    keyed.wait(keyed.submit(limited), headers=limited)
    assert keyed.backend.calls[-1][2].share == Share(keyed.keys.keys["limited"].id, 3.0)


def test_the_same_idempotency_key_of_two_callers_is_two_keys(keyed: KeyedService) -> None:
    first = keyed.draw(KEY | keyed.keys.bearer("alice"))
    second = keyed.draw(KEY | keyed.keys.bearer("bob"), prompt="q")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content != second.content


def test_a_job_is_recorded_and_charged_once_to_its_key(keyed: KeyedService) -> None:
    limited = keyed.keys.bearer("limited")
    keyed.backend.errors = [StageFailed("once")]
    path = keyed.submit(limited, n=2)
    assert keyed.wait(path, headers=limited)["attempts"] == 2
    keyed.until(lambda: len(keyed.records) == 2)
    assert [(record.outcome, len(record.image_usages)) for record in keyed.records] == [
        ("failed", 0),
        ("done", 2),
    ]
    assert {record.key for record in keyed.records} == {keyed.keys.keys["limited"].id}
    assert {record.key_name for record in keyed.records} == {"limited"}
    assert keyed.remaining() == 1


def test_an_answer_that_is_given_again_is_not_charged(keyed: KeyedService) -> None:
    limited = keyed.keys.bearer("limited")
    answers = [keyed.draw(KEY | limited, n=3) for _ in range(3)]  # all that the key may draw today
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert keyed.remaining() == 0
    assert keyed.draw(limited).status_code == 429


def test_a_job_beyond_the_quota_is_refused(keyed: KeyedService) -> None:
    response = keyed.client.post(ROUTE, json=BODY | {"n": 4}, headers=ASYNC | keyed.keys.bearer("limited"))
    assert response.status_code == 429
    assert keyed.remaining() == 3, "nothing was charged"


def test_a_job_waits_for_the_quota(keyed: KeyedService) -> None:
    limited = keyed.keys.bearer("limited")
    keyed.close_gate()
    drawn = [keyed.submit(limited, n=1) for _ in range(2)]  # as many as are drawn at a time
    for path in drawn:
        keyed.wait(path, "running", limited)
    # submitted while there is room for one image beside those that are drawn
    others = [keyed.submit(limited, n=1) for _ in range(2)]
    keyed.open_gate()
    for path in drawn:
        keyed.wait(path, headers=limited)
    keyed.until(lambda: sorted(keyed.show(path, limited)["state"] for path in others) == ["done", "queued"])
    assert keyed.remaining() == 0


def test_a_model_that_the_key_may_not_use_is_refused(keyed: KeyedService) -> None:
    response = keyed.client.post(ROUTE, json=BODY, headers=ASYNC | keyed.keys.bearer("narrow"))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "model_not_allowed")


async def revoke(folder: Path, name: str) -> None:
    database = Database(find_database(str(folder / "database")))
    await DatabaseKeys(database).revoke(name)
    await database.close()


def test_the_jobs_of_a_revoked_key_fail(keyed: KeyedService) -> None:
    bob = keyed.keys.bearer("bob")
    keyed.close_gate()
    for _ in range(2):  # as many as are drawn at a time
        keyed.wait(keyed.submit(keyed.keys.bearer("alice")), "running", keyed.keys.bearer("alice"))
    job_id = keyed.submit(bob).rpartition("/")[2]
    portal = keyed.client.portal
    assert portal is not None
    portal.call(revoke, keyed.folder, "bob")
    keyed.open_gate()
    store = portal.call(keyed.app.state.gateway.jobs.open).store
    keyed.until(lambda: portal.call(store.get, job_id, None).state == "failed")
    assert portal.call(store.get, job_id, None).error.code == "invalid_api_key"
