"""Batches of API keys: each sees its own, and is held to its models and limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from safelight.service.keys.api_key import KeyLimits, KeySpec
from tests.service.http.batches.service import Batches, hurry, make_client, make_line
from tests.service.http.jobs.service import Service, make_settings, serving
from tests.service.http.keyed import Keys, make_keys

LIMITED = KeySpec("limited", limits=KeyLimits(images_per_day=3))
NARROW = KeySpec("narrow", models=("another-model",))


@dataclass
class Keyed:
    """A gateway that asks for keys."""

    service: Service
    keys: Keys

    def client(self, name: str) -> OpenAI:
        return make_client(self.service.client, self.keys.secrets[name])

    def batches(self, name: str) -> Batches:
        return Batches(self.service, self.client(name))


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyed]:
    hurry(monkeypatch)
    keys = make_keys(tmp_path / "database", LIMITED, NARROW, KeySpec("bob"))
    settings = make_settings(tmp_path, require_api_keys="always", key_refresh_seconds=0.01)
    with serving(settings) as service:
        yield Keyed(service, keys)


def test_a_key_sees_its_own_files_and_batches(keyed: Keyed) -> None:
    alice, bob = keyed.batches("alice"), keyed.client("bob")
    done = alice.wait(alice.create(make_line("a")))
    assert done.output_file_id is not None
    for file_id in (done.input_file_id, done.output_file_id):
        for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(NotFoundError):
                call(file_id)
    for show in (bob.batches.retrieve, bob.batches.cancel):
        with pytest.raises(NotFoundError):
            show(done.id)
    with pytest.raises(NotFoundError):
        bob.batches.create(
            input_file_id=done.input_file_id, endpoint="/v1/images/generations", completion_window="24h"
        )
    assert (bob.batches.list().data, bob.files.list().data) == ([], [])
    assert len(alice.client.files.list().data) == 2
    keyed.service.until(lambda: bool(keyed.service.records))
    assert {record.key for record in keyed.service.records} == {keyed.keys.keys["alice"].id}


def test_a_quota_that_is_used_up_delays_the_rest(keyed: Keyed) -> None:
    limited = keyed.batches("limited")
    batch = limited.create(*[make_line(str(n)) for n in range(5)])
    keyed.service.until(lambda: keyed.service.num_drawn == 3)
    counts = limited.client.batches.retrieve(batch.id).request_counts
    assert counts is not None and counts.failed == 0
    limited.client.batches.cancel(batch.id)
    cancelled = limited.wait(batch, "cancelled")
    assert len(limited.read(cancelled.output_file_id)) == 3 == keyed.service.num_drawn
    assert len(limited.read(cancelled.error_file_id)) == 2


def test_a_model_that_the_key_may_not_use_is_a_line_of_the_errors(keyed: Keyed) -> None:
    narrow = keyed.batches("narrow")
    [line] = narrow.read(narrow.wait(narrow.create(make_line("a"))).error_file_id)
    assert line["response"]["status_code"] == 403
    assert line["response"]["body"]["error"]["code"] == "model_not_allowed"
