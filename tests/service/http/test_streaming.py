"""Streamed answers of the gateway: events, order, errors, slow and gone clients, records."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from safelight.service.errors import QueueFull, StageFailed, StageLost
from safelight.service.http import streaming
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import DecodeResult, PreparedSource
from safelight.service.settings import Settings
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.reporter import Outbox
from tests.fakes import MODEL, PREVIEWS, USAGE, FakeBackend, fake_image
from tests.service.asgi import AsgiClient, Message
from tests.service.conftest import ROUTE
from tests.service.http.uploads import data_url
from tests.virtual_time import run_in_virtual_time

Event = tuple[str, dict[str, Any]]
EDITS = "/v1/images/edits"
STREAM = {"prompt": "p", "seed": 1, "stream": True}


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[UsageRecord]:
    """The usage records of all requests."""
    records: list[UsageRecord] = []
    monkeypatch.setattr(Outbox, "put", lambda self, record: records.append(record))
    return records


def events_of(text: str) -> list[Event]:
    """The events of an answer: their names and data. Comments are left out."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def streamed(backend: FakeBackend, body: dict[str, Any]) -> list[Event]:
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        response = client.post(ROUTE, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"]
        return events_of(response.text)


def body_of(client: AsgiClient) -> str:
    return b"".join(message["body"] for message in client.sent[1:]).decode()


class SteppingBackend(FakeBackend):
    """Gives one preview whenever `step` is released, and then the image."""

    def __init__(self) -> None:
        super().__init__()
        self.step = asyncio.Semaphore(0)
        self.given = asyncio.Semaphore(0)

    async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
        params, output, _, _, previews = args
        self.waiting.release()
        try:
            for preview in PREVIEWS[: previews.request.count] if previews else ():
                await self.step.acquire()
                previews.put(preview)
                self.given.release()
            await self.step.acquire()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return DecodeResult(fake_image(params, output), replace(USAGE, previews=(PREVIEWS[0].cost,)))


async def until(client: AsgiClient, text: str) -> None:
    while not client.sent[1:] or text not in body_of(client):
        await asyncio.sleep(0)


async def test_events_are_those_of_openai_with_the_images_index(records: list[UsageRecord]) -> None:
    backend = SteppingBackend()
    client = AsgiClient.of(STREAM | {"partial_images": 2, "output_format": "webp"})
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    for k in range(2):  # each is sent when it is there, and not with the image
        backend.step.release()
        await until(client, f'"partial_image_index":{k}')
    assert records == []
    backend.step.release()
    await answering
    partial, second, completed = events_of(body_of(client))
    assert [name for name, _ in (partial, second, completed)] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    data = partial[1]
    assert isinstance(data.pop("created_at"), int)
    assert data == {
        "type": "image_generation.partial_image",
        "b64_json": base64.b64encode(b"preview 0").decode(),
        "background": "opaque",
        "output_format": "webp",
        "partial_image_index": 0,
        "quality": data["quality"],
        "size": "8x8",
        "image_index": 0,
    }
    assert second[1]["partial_image_index"] == 1
    usage = completed[1]["usage"]
    assert usage["input_tokens"] == 3 and usage["safelight"]["previews"] == 1
    assert usage["safelight"]["device_seconds"]["decode"] == 0.375 + 1 / 16
    assert usage["safelight"]["flops"] == 2130 + 3
    assert "partial_image_index" not in completed[1] and completed[1]["image_index"] == 0
    assert [(r.outcome, r.num_images, len(r.image_usages)) for r in records] == [(RequestOutcome.DONE, 1, 1)]


def test_the_images_are_those_of_the_same_request_without_a_stream() -> None:
    body = STREAM | {"n": 3, "output_format": "jpeg"}
    events = streamed(FakeBackend(), body)
    with TestClient(build_gateway(FakeBackend(), MODEL, Settings())) as client:
        plain = client.post(ROUTE, json=body | {"stream": False}).json()
    images = {data["image_index"]: data["b64_json"] for _, data in events}
    assert [images[k] for k in range(3)] == [image["b64_json"] for image in plain["data"]]
    assert {name for name, _ in events} == {"image_generation.completed"}
    assert sum(data["usage"]["total_tokens"] for _, data in events) == plain["usage"]["total_tokens"]
    assert [data["usage"]["safelight"]["previews"] for _, data in events] == [0, 0, 0]


def test_edits_stream_under_their_own_names_in_the_size_of_their_source(records: list[UsageRecord]) -> None:
    body = STREAM | {"n": 2, "image": data_url(b"image"), "strength": 0.5}
    app = build_gateway(FakeBackend(), MODEL, Settings())
    response = TestClient(app).post(EDITS, json=body)  # without lifespan: no warm-up image
    events = events_of(response.text)
    assert [name for name, _ in events] == ["image_edit.completed"] * 2
    assert {(data["type"], data["size"]) for _, data in events} == {("image_edit.completed", "16x8")}
    edits = {data["image_index"]: data["usage"]["safelight"]["edit"] for _, data in events}
    assert edits[0]["uploaded_size"] == "33x16" and edits[1] is None  # one upload, charged once
    adjusted = {data["image_index"]: data["usage"]["safelight"]["adjusted"] for _, data in events}
    assert [item["field"] for item in adjusted[0]] == ["image"] and adjusted[1] == []
    assert [(r.outcome, len(r.image_usages)) for r in records] == [(RequestOutcome.DONE, 2)]


def test_previews_without_a_stream_are_not_made() -> None:
    backend = FakeBackend()
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        response = client.post(ROUTE, json={"prompt": "p", "partial_images": 3})
    assert response.headers["content-type"] == "application/json"
    assert backend.preview_requests == []


@pytest.mark.parametrize(
    ("body", "error", "status"),
    [({"prompt": ""}, None, 400), ({"partial_images": 4}, None, 400), ({"n": 2}, "full", 429)],
)
def test_errors_before_the_first_event_are_ordinary_answers(
    body: dict[str, Any], error: str | None, status: int, records: list[UsageRecord]
) -> None:
    settings = Settings(max_pictures=1) if error else Settings()
    app = build_gateway(FakeBackend(), MODEL, settings)
    response = TestClient(app).post(ROUTE, json=STREAM | body)  # without lifespan: no warm-up image
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert [r.outcome for r in records] == [RequestOutcome.REFUSED]


def test_an_upload_that_is_refused_is_an_ordinary_answer(records: list[UsageRecord]) -> None:
    """It is read before the first event."""
    backend = FakeBackend()
    app = build_gateway(backend, MODEL, Settings())
    body = STREAM | {"image": data_url(b"bad"), "partial_images": 1}
    response = TestClient(app).post(EDITS, json=body)  # without lifespan: no warm-up image
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"]["param"] == "image"
    assert [(r.outcome, r.code) for r in records] == [(RequestOutcome.REFUSED, "invalid_value")]
    assert backend.calls == [] and app.state.gateway.backends.in_flight() == 0


async def test_the_stream_of_an_edit_begins_once_its_upload_is_read(records: list[UsageRecord]) -> None:
    """And not when its image is done."""
    backend = SteppingBackend()
    client = AsgiClient.of(STREAM | {"image": data_url(b"image"), "partial_images": 1})
    client.scope["path"] = EDITS
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    backend.step.release()
    async with asyncio.timeout(30.0):  # else it waits for the image, which waits for the test
        await until(client, '"partial_image_index":0')
    backend.step.release()
    await answering
    assert [name for name, _ in events_of(body_of(client))] == [
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    assert [r.outcome for r in records] == [RequestOutcome.DONE]


async def test_a_client_that_goes_while_its_upload_is_read_has_one_record(records: list[UsageRecord]) -> None:
    class Reading(FakeBackend):
        async def prepare(self, *args: Any) -> PreparedSource:
            self.waiting.release()
            try:
                await asyncio.Event().wait()
            finally:
                self.num_cancelled += 1
            raise AssertionError

    backend = Reading()
    app = build_gateway(backend, MODEL, Settings())
    client = AsgiClient.of(STREAM | {"image": data_url(b"image")})
    client.scope["path"] = EDITS
    answering = asyncio.ensure_future(client.call(app))
    await backend.waiting.acquire()
    client.disconnected.set()
    await answering
    assert backend.num_cancelled == 1 and app.state.gateway.backends.in_flight() == 0
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


@pytest.mark.parametrize(
    ("errors", "code", "outcome"),
    [
        ([StageFailed()], "stage_failed", RequestOutcome.FAILED),
        ([StageLost() for _ in range(4)], "stage_lost", RequestOutcome.FAILED),
        ([QueueFull()], "queue_full", RequestOutcome.REFUSED),
        ([KeyError("secret")], "service_unavailable", RequestOutcome.FAILED),
    ],
)
async def test_later_errors_are_an_event_that_ends_the_stream(
    errors: list[Exception], code: str, outcome: RequestOutcome, records: list[UsageRecord]
) -> None:
    client = AsgiClient.of(STREAM | {"partial_images": 1})
    await client.call(build_gateway(FakeBackend(*errors), MODEL, Settings()))
    assert client.status == 200
    name, data = events_of(body_of(client))[-1]
    assert (name, data["type"], data["error"]["code"]) == ("error", "error", code)
    assert data["error"].keys() == {"message", "type", "param", "code"} and data["request_id"]
    assert "secret" not in body_of(client)
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert [(r.outcome, r.code, r.image_usages) for r in records] == [(outcome, code, ())]


async def test_images_that_were_sent_before_an_error_are_in_the_record(records: list[UsageRecord]) -> None:
    class Failing(FakeBackend):
        async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
            if args[0].image_index == 1:
                await asyncio.sleep(0.01)
                raise StageFailed()
            return await super().generate(*args, **kwargs)

    client = AsgiClient.of(STREAM | {"n": 2})
    await client.call(build_gateway(Failing(), MODEL, Settings()))
    assert [name for name, _ in events_of(body_of(client))] == ["image_generation.completed", "error"]
    [record] = records
    assert (record.outcome, record.num_images, record.image_usages) == (RequestOutcome.FAILED, 2, (USAGE,))


async def test_a_client_that_goes_cancels_its_images_and_has_one_record(records: list[UsageRecord]) -> None:
    backend = SteppingBackend()
    client = AsgiClient.of(STREAM | {"n": 2, "partial_images": 1})
    app = build_gateway(backend, MODEL, Settings())
    answering = asyncio.ensure_future(client.call(app))
    for _ in range(2):
        await backend.waiting.acquire()
    client.disconnected.set()
    await answering
    assert backend.num_cancelled == 2
    assert [(r.outcome, r.num_images) for r in records] == [(RequestOutcome.ABORTED, 2)]
    assert app.state.gateway.backends.in_flight() == 0


async def test_a_stream_whose_handler_is_cancelled_has_one_record(records: list[UsageRecord]) -> None:
    """Serve does so when the client disconnects."""
    backend = SteppingBackend()
    client = AsgiClient.of(STREAM)
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    await backend.waiting.acquire()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert backend.num_cancelled == 1
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_client_that_goes_while_an_event_is_sent_cancels_its_images(
    records: list[UsageRecord],
) -> None:
    """Its socket takes nothing more, so that `send` does not return."""

    class Stalled(AsgiClient):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

    backend = SteppingBackend()
    client = Stalled.of(STREAM | {"partial_images": 3})
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    backend.step.release()
    await until(client, '"partial_image_index":0')
    client.disconnected.set()
    await answering
    assert backend.num_cancelled == 1
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_server_that_cannot_send_has_lost_its_client(records: list[UsageRecord]) -> None:
    class Broken(AsgiClient):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                raise BrokenPipeError

    backend = SteppingBackend()
    client = Broken.of(STREAM | {"partial_images": 1})
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    backend.step.release()
    await answering
    assert len(client.sent) == 2  # no error event is tried
    assert backend.num_cancelled == 1
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_slow_client_misses_previews_and_gets_the_image(records: list[UsageRecord]) -> None:
    """While its first preview is being sent, two more are drawn, and the image."""
    may_send = asyncio.Event()

    class Slow(AsgiClient):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if b"partial_image" in message.get("body", b""):
                await may_send.wait()

    backend = SteppingBackend()
    app = build_gateway(backend, MODEL, Settings())
    client = Slow.of(STREAM | {"partial_images": 3})
    answering = asyncio.ensure_future(client.call(app))
    backend.step.release()
    await until(client, '"partial_image_index":0')
    for _ in range(3):
        backend.step.release()
    while app.state.gateway.backends.in_flight():  # the image is done, although the client has one preview
        await asyncio.sleep(0)
    may_send.set()
    await answering
    assert [name for name, _ in events_of(body_of(client))] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [r.outcome for r in records] == [RequestOutcome.DONE]


def test_comments_keep_an_idle_stream_alive() -> None:
    """An image takes 40 s."""

    class Waiting(FakeBackend):
        async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
            await asyncio.sleep(40.0)
            return await super().generate(*args, **kwargs)

    async def run() -> str:
        client = AsgiClient.of(STREAM)
        await client.call(build_gateway(Waiting(), MODEL, Settings()))
        return body_of(client)

    text = run_in_virtual_time(run())
    assert streaming.KEEP_ALIVE_SECONDS == 15.0
    assert text.startswith(": ping\n\n: ping\n\nevent: image_generation.completed\n")


def test_the_schema_says_that_answers_may_be_events() -> None:
    schema = build_gateway(FakeBackend(), MODEL, Settings()).openapi()
    content = schema["paths"][ROUTE]["post"]["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/event-stream"}
    event = content["text/event-stream"]["schema"]["properties"]
    assert {"image_generation.partial_image", "image_edit.completed", "error"} <= set(event["event"]["enum"])
    answers = streamed(FakeBackend(), STREAM | {"partial_images": 2})
    answers += streamed(FakeBackend(StageFailed()), STREAM)
    validator = Draft202012Validator(event["data"]["contentSchema"])
    for name, data in answers:
        assert name in event["event"]["enum"]
        validator.validate(data)
        assert not validator.is_valid({key: value for key, value in data.items() if key != "type"})
