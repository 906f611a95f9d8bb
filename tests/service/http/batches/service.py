"""Batches through OpenAI's own client, which speaks with a gateway over a fake backend."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch
from starlette.testclient import TestClient

from safelight.service.batches import queue as batch_queue
from safelight.service.jobs import queue, runner
from tests.service.conftest import ROUTE
from tests.service.http.jobs.service import Service, make_settings, serving


def make_line(custom_id: str, url: str = ROUTE, **body: object) -> dict[str, Any]:
    """A line of an input file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": "p", "seed": 7} | body}


def jsonl(*lines: object) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


@dataclass
class Batches:
    """A caller of batches."""

    service: Service
    client: OpenAI

    def upload(self, *lines: object) -> str:
        """The id of a new file."""
        return self.client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch").id

    def create(self, *lines: object, endpoint: Any = ROUTE, **options: Any) -> Batch:
        """A new batch of these lines."""
        return self.client.batches.create(
            input_file_id=self.upload(*lines), endpoint=endpoint, completion_window="24h", **options
        )

    def wait(self, batch: Batch, status: str = "completed") -> Batch:
        """The batch, once it is in this status."""
        self.service.until(lambda: self.client.batches.retrieve(batch.id).status == status)
        return self.client.batches.retrieve(batch.id)

    def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file, which says how long it is."""
        assert file_id is not None
        content = self.client.files.content(file_id).content
        assert len(content) == self.client.files.retrieve(file_id).bytes
        return [json.loads(line) for line in content.splitlines()]


def make_client(client: TestClient, key: str = "none") -> OpenAI:
    """OpenAI's client, whose requests go to a test client."""
    return OpenAI(api_key=key, base_url="http://testserver/v1", http_client=client, max_retries=0)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all loops look often, and nothing that has failed wait."""
    for module in (queue, batch_queue):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner, "MAX_BACKOFF_SECONDS", 0.0)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    hurry(monkeypatch)
    with serving(make_settings(tmp_path)) as service:
        yield service


@pytest.fixture
def client(service: Service) -> OpenAI:
    return make_client(service.client)


@pytest.fixture
def batches(service: Service, client: OpenAI) -> Batches:
    return Batches(service, client)
