"""All images or none, in time, a lost one again, and nobody left in the batch."""

import asyncio
import json

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
from safelight.service.usage.records import RequestOutcome
from tests.fakes import MODEL, FakeBackend, make_params
from tests.service.conftest import ROUTE


def make_dispatcher(backend: FakeBackend, **settings) -> RequestDispatcher:
    return RequestDispatcher(backend, Metrics(), Settings(**settings))


IMAGES = [make_params(image_index=k) for k in range(3)]


async def test_images_come_in_the_order_of_the_request():
    backend = FakeBackend()
    await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert [params.image_index for params, _ in backend.drawn] == [0, 1, 2]


async def test_draining_answers_what_was_let_in_and_refuses_the_rest():
    backend = FakeBackend()
    dispatcher = make_dispatcher(backend)
    backend.gate.clear()
    let_in = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    draining = asyncio.ensure_future(dispatcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await dispatcher.generate(IMAGES[:1], ImageFormat())
    assert not draining.done()
    backend.gate.set()
    assert len(await let_in) == 3
    await asyncio.wait_for(draining, 5.0)


async def test_a_lost_image_is_sent_once_more():
    backend = FakeBackend(StageLost())
    drawn = await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert len(drawn) == 1


async def test_a_image_lost_twice_is_503():
    with pytest.raises(StageLost) as lost:
        await make_dispatcher(FakeBackend(StageLost(), StageLost())).generate(IMAGES[:1], ImageFormat())
    assert (lost.value.status, lost.value.headers) == (503, {"retry-after": "5"})


@pytest.mark.parametrize("error", [StageFailed(), QueueFull(), ValueError("x")])
async def test_what_is_not_lost_is_not_sent_again(error):
    backend = FakeBackend(error)
    with pytest.raises(ServiceError):
        await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert backend.drawn == []


async def test_cancelling_a_request_takes_all_its_images_out():
    backend = FakeBackend()
    backend.gate.clear()
    painting = asyncio.ensure_future(make_dispatcher(backend).generate(IMAGES, ImageFormat()))
    for _ in IMAGES[1:]:
        await backend.waiting.acquire()
    painting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await painting
    assert backend.num_cancelled == 3


async def test_a_failure_takes_the_neighbours_out():
    backend = FakeBackend(StageFailed())
    backend.gate.clear()
    with pytest.raises(StageFailed):
        await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert backend.num_cancelled == 2


async def test_the_deadline_takes_every_image_out():
    backend = FakeBackend()
    backend.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await make_dispatcher(backend, deadline_seconds=0.01).generate(IMAGES, ImageFormat())
    assert backend.num_cancelled == 3


async def test_more_images_than_there_is_room_for_are_refused():
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
    """One HTTP request to an app, spoken by hand, so that its sender can go away."""

    def __init__(self, body: dict):
        self.gone = asyncio.Event()
        self.sent: list[dict] = []
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

    async def receive(self) -> dict:
        if self._chunks:
            return self._chunks.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.fixture
def records(monkeypatch) -> list:
    kept: list = []
    monkeypatch.setattr(Metrics, "record", lambda self, record: kept.append(record))
    return kept


async def test_a_client_that_goes_away_takes_its_images_with_it(backend, records):
    backend.gate.clear()
    client = Client({"prompt": "p", "n": 2})
    answering = asyncio.ensure_future(
        build_gateway(backend, MODEL, Settings())(client.scope, client.receive, client.send)
    )
    await backend.waiting.acquire()
    await backend.waiting.acquire()
    client.gone.set()
    await answering
    assert backend.num_cancelled == 2
    assert [(r.outcome, r.code, r.num_images) for r in records] == [
        (RequestOutcome.ABORTED, ClientGone.code, 2)
    ]


async def test_a_cancelled_handler_takes_its_images_with_it(backend, records):
    """How Serve tells of a client that went away."""
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


async def test_a_client_that_goes_away_within_its_body_is_accounted_for(backend, records):
    client = Client({})
    client._chunks = []
    client.gone.set()
    await build_gateway(backend, MODEL, Settings())(client.scope, client.receive, client.send)
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_connection_that_breaks_within_the_body_is_a_client_that_went_away(backend, records):
    """How Serve's proxy tells of it: by an exception of Ray's out of `receive`."""

    async def broken() -> dict:
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
async def test_exactly_one_record_on_each_way_out(body, errors, status, outcome, code, records):
    client = Client(body)
    await build_gateway(FakeBackend(*errors), MODEL, Settings())(client.scope, client.receive, client.send)
    assert client.sent[0]["status"] == status
    assert [(r.outcome, r.code) for r in records] == [(outcome, code)]
    assert len(records[0].images) == (1 if outcome is RequestOutcome.DONE else 0)
