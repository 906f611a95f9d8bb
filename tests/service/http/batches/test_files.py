"""Files through OpenAI's client: uploaded, shown, listed, read and deleted, within their limits."""

import time
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from tests.service.http.batches.service import Batches, make_client, make_line
from tests.service.http.jobs.service import Service, make_settings, serving


def test_a_file_is_kept_as_it_was_sent(client: OpenAI) -> None:
    content = b'{"custom_id": "a"}\r\n\n\xff\x00'
    file = client.files.create(file=("\u00e4 b.jsonl", content), purpose="batch")
    assert (file.object, file.purpose, file.bytes) == ("file", "batch", len(content))
    assert (file.filename, file.status) == ("\u00e4 b.jsonl", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFoundError):
            call(file.id)


def test_files_are_listed_by_age_and_purpose(batches: Batches) -> None:
    made = [batches.upload(make_line(str(n))) for n in range(3)]
    done = batches.wait(batches.create(make_line("a")))
    files = batches.client.files
    assert [file.id for file in files.list(limit=2, order="asc", purpose="batch")][:3] == made
    assert [file.id for file in files.list(purpose="batch_output")] == [done.output_file_id]
    page = files.list(limit=2)
    assert len(page.data) == 2 and page.has_more
    assert len(list(page)) == 5 and next(iter(page)).id == done.output_file_id
    assert files.list(limit=2, after=made[0], order="asc").data[0].id == made[1]


def test_a_file_is_kept_no_longer_than_its_caller_wishes(client: OpenAI) -> None:
    file = client.files.create(
        file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None and 3590 < file.expires_at - time.time() < 3610


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "expires_after[seconds]": "5"}, "expires_after[anchor]"),
    ],
    ids=str,
)
def test_a_file_with_a_fault_is_refused(fields: dict[str, str], param: str, service: Service) -> None:
    response = service.client.post("/v1/files", data=fields, files={"file": ("a", b"x")})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("files", [{}, {"file": None}, {"image": ("a", b"x")}], ids=str)
def test_a_form_needs_one_file(files: dict[str, Any], service: Service) -> None:
    parts = {"purpose": (None, "batch")} | {name: value for name, value in files.items() if value}
    response = service.client.post("/v1/files", files=parts)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


def test_other_bodies_are_no_files(service: Service) -> None:
    assert service.client.post("/v1/files", json={"purpose": "batch"}).status_code == 415


def test_files_are_bounded(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path, max_file_bytes=1000, max_files_bytes=1500)) as service:

        def upload(num_bytes: int) -> Any:
            files = {"file": ("a", bytes(num_bytes))}
            return service.client.post("/v1/files", data={"purpose": "batch"}, files=files)

        assert upload(1001).status_code == 400
        assert upload(100_000).status_code == 413
        kept = upload(1000)
        assert kept.status_code == 200
        refused = upload(501)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_files")
        assert upload(500).status_code == 200
        assert service.client.delete(f"/v1/files/{kept.json()['id']}").status_code == 200
        assert upload(501).status_code == 200


def test_a_file_ends(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path, file_seconds=1.0)) as service:
        client = make_client(service.client)
        file = client.files.create(file=b"{}", purpose="batch")
        service.until(lambda: not client.files.list().data)
        with pytest.raises(NotFoundError):
            client.files.content(file.id)


def test_the_input_may_be_deleted_while_its_batch_is_drawn(batches: Batches) -> None:
    batches.service.close_gate()
    batch = batches.create(make_line("a"))
    batches.service.until(lambda: len(batches.service.backend.calls) == 2)
    batches.client.files.delete(batch.input_file_id)
    batches.service.open_gate()
    done = batches.wait(batch)
    assert len(batches.read(done.output_file_id)) == 1
