"""The dispatcher: all images of a request or none, deadline, retry and cancellation."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import (
    ClientGone,
    DeadlineExceeded,
    QueueFull,
    ServiceError,
    ShuttingDown,
    StageFailed,
    StageLost,
)
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import ImageFormat
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.records import RequestOutcome, UsageRecord
from tests.fakes import MODEL, FakeBackend, make_params
from tests.service.conftest import ROUTE


def make_dispatcher(backend: FakeBackend, **settings: Any) -> RequestDispatcher:
    return RequestDispatcher(backend, Metrics(), Settings(**settings))


IMAGES = [make_params(image_index=k) for k in range(3)]


async def test_images_are_in_the_order_of_the_request() -> None:
    backend = FakeBackend()
    await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert [params.image_index for params, _ in backend.drawn] == [0, 1, 2]


async def test_draining_finishes_requests_in_flight_and_refuses_new_ones() -> None:
    backend = FakeBackend()
    dispatcher = make_dispatcher(backend)
    backend.gate.clear()
    in_flight = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    draining = asyncio.ensure_future(dispatcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await dispatcher.generate(IMAGES[:1], ImageFormat())
    assert not draining.done()
    backend.gate.set()
    assert len(await in_flight) == 3
    await asyncio.wait_for(draining, 5.0)


async def test_a_lost_image_is_retried_once() -> None:
    backend = FakeBackend(StageLost())
    images = await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert len(images) == 1


async def test_an_image_lost_twice_is_503() -> None:
    with pytest.raises(StageLost) as lost:
        await make_dispatcher(FakeBackend(StageLost(), StageLost())).generate(IMAGES[:1], ImageFormat())
    assert (lost.value.status, lost.value.headers) == (503, {"retry-after": "5"})


@pytest.mark.parametrize("error", [StageFailed(), QueueFull(), ValueError("x")])
async def test_other_errors_are_not_retried(error: Exception) -> None:
    backend = FakeBackend(error)
    with pytest.raises(ServiceError):
        await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert backend.drawn == []


async def test_cancelling_a_request_cancels_all_its_images() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    generating = asyncio.ensure_future(make_dispatcher(backend).generate(IMAGES, ImageFormat()))
    for _ in IMAGES[1:]:
        await backend.waiting.acquire()
    generating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await generating
    assert backend.num_cancelled == 3


async def test_a_failed_image_cancels_the_others_of_its_request() -> None:
    backend = FakeBackend(StageFailed())
    backend.gate.clear()
    with pytest.raises(StageFailed):
        await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert backend.num_cancelled == 2


async def test_the_deadline_cancels_every_image() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await make_dispatcher(backend, deadline_seconds=0.01).generate(IMAGES, ImageFormat())
    assert backend.num_cancelled == 3


async def test_more_images_than_max_pictures_are_refused() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    dispatcher = make_dispatcher(backend, max_pictures=4)
    first = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    with pytest.raises(QueueFull):
        await dispatcher.generate(IMAGES[:2], ImageFormat())
    backend.gate.set()
    await first
    assert len(await dispatcher.generate(IMAGES, ImageFormat())) == 3


class Client:
    """One HTTP request to an ASGI app, whose client can disconnect."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.disconnected = asyncio.Event()
        self.sent: list[MutableMapping[str, Any]] = []
        self._chunks = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": ROUTE,
            "raw_path": ROUTE.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }

    async def receive(self) -> dict[str, Any]:
        if self._chunks:
            return self._chunks.pop()
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[UsageRecord]:
    """The usage records of the requests that have ended."""
    records: list[UsageRecord] = []
    monkeypatch.setattr(Metrics, "record", lambda self, record: records.append(record))
    return records


async def test_a_client_that_disconnects_cancels_its_images(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    backend.gate.clear()
    client = Client({"prompt": "p", "n": 2})
    answering = asyncio.ensure_future(
        build_gateway(backend, MODEL, Settings())(client.scope, client.receive, client.send)
    )
    await backend.waiting.acquire()
    await backend.waiting.acquire()
    client.disconnected.set()
    await answering
    assert backend.num_cancelled == 2
    assert [(r.outcome, r.code, r.num_images) for r in records] == [
        (RequestOutcome.ABORTED, ClientGone.code, 2)
    ]


async def test_a_cancelled_handler_cancels_its_images(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    """Serve cancels the handler when the client disconnects."""
    backend.gate.clear()
    client = Client({"prompt": "p"})
    answering = asyncio.ensure_future(
        build_gateway(backend, MODEL, Settings())(client.scope, client.receive, client.send)
    )
    await backend.waiting.acquire()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert backend.num_cancelled == 1
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_client_that_disconnects_within_its_body_is_recorded(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    client = Client({})
    client._chunks = []
    client.disconnected.set()
    await build_gateway(backend, MODEL, Settings())(client.scope, client.receive, client.send)
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_an_error_while_reading_the_body_is_a_client_that_disconnected(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    """Serve's proxy then lets `receive` raise one of Ray's exceptions."""

    async def broken() -> dict[str, Any]:
        raise RuntimeError("the task is canceled before it executes")

    client = Client({})
    await build_gateway(backend, MODEL, Settings())(client.scope, broken, client.send)
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


@pytest.mark.parametrize(
    ("body", "errors", "status", "outcome", "code"),
    [
        ({"prompt": "p"}, [], 200, RequestOutcome.DONE, "ok"),
        ({"prompt": "p"}, [StageLost()], 200, RequestOutcome.DONE, "ok"),
        ({"prompt": ""}, [], 400, RequestOutcome.REFUSED, "invalid_value"),
        ({"prompt": "p", "solver": "x"}, [], 400, RequestOutcome.REFUSED, "invalid_value"),
        ({"prompt": "p", "model": "x"}, [], 404, RequestOutcome.REFUSED, "model_not_found"),
        ({"prompt": "p"}, [QueueFull()], 429, RequestOutcome.REFUSED, "queue_full"),
        ({"prompt": "p"}, [StageFailed()], 503, RequestOutcome.FAILED, "stage_failed"),
        ({"prompt": "p"}, [KeyError("secret")], 503, RequestOutcome.FAILED, "service_unavailable"),
    ],
)
async def test_every_request_has_exactly_one_record(
    body: dict[str, str],
    errors: list[Exception],
    status: int,
    outcome: RequestOutcome,
    code: str,
    records: list[UsageRecord],
) -> None:
    client = Client(body)
    await build_gateway(FakeBackend(*errors), MODEL, Settings())(client.scope, client.receive, client.send)
    assert client.sent[0]["status"] == status
    assert [(r.outcome, r.code) for r in records] == [(outcome, code)]
    assert len(records[0].image_usages) == (1 if outcome is RequestOutcome.DONE else 0)
