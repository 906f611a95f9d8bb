"""Bad uploads and bodies as `python -m tests.bench.bad_requests` sends them: each answered, memory flat."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from tests.bench.bad_requests import MAX_PEAK, SETTINGS, answers
from tests.service.inprocess_backend import InProcessBackend

# What the answers must cover, by a part of the name.
KINDS = (
    "truncated in a file",
    "zip bomb",
    "pixel bomb",
    "text bomb",
    "png header of 100000x10000",
    "animated webp",
    "drawn: CMYK JPEG",
    "drawn: 16-bit PNG",
    "mask of another size",
    "svg",
    "file: text",
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    model = find_model("tiny")
    pipeline = InProcessPipeline(model, SETTINGS)
    pipeline.wait()
    yield TestClient(build_gateway(InProcessBackend(pipeline), model, SETTINGS))
    pipeline.close()


def test_every_bad_request_has_its_documented_answer_and_memory_stays_flat(client: TestClient) -> None:
    report = list(answers(client))
    assert [answer for answer in report if not answer.is_expected] == []
    assert [answer for answer in report if answer.peak_bytes > MAX_PEAK] == []
    names = [answer.name for answer in report]
    assert len(set(names)) == len(names) >= 70
    assert all(any(kind in name for name in names) for kind in KINDS)
