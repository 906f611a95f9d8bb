"""What waits for a streamed request's reader, and streamed requests through the dispatcher."""

import asyncio
import itertools
from typing import Any

import pytest

from safelight.pipeline.params import PreviewRequest
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import DeadlineExceeded, QueueFull, ServiceError, ShuttingDown, StageLost
from safelight.service.image_stream import ImageStream
from safelight.service.messages import DecodeResult, ImageFormat, Preview, RequestContext
from safelight.service.model_backends import ModelBackends
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from tests.fakes import MODEL, PREVIEWS, USAGE, FakeBackend, images_in_flight, make_params
from tests.virtual_time import run_in_virtual_time

IMAGES = [make_params(image_index=k) for k in range(2)]
IMAGE = DecodeResult(b"image", USAGE)
OUTPUT = ImageFormat()
Read = tuple[int, bytes] | None


def make_dispatcher(backend: FakeBackend, **settings: Any) -> RequestDispatcher:
    return RequestDispatcher(ModelBackends.of_one(MODEL, backend), Metrics(), Settings(**settings))


async def read(stream: ImageStream, work: "asyncio.Future[Any]", idle_seconds: float = 60.0) -> list[Read]:
    """Every event as (image index, bytes); None for an idle one."""
    return [
        None if event is None else (event.params.image_index, event.content.image)
        async for event in stream.events(work, idle_seconds)
    ]


def take_all(stream: ImageStream) -> list[tuple[int, bytes]]:
    events = iter(stream.take, None)
    return [(event.params.image_index, event.content.image) for event in events]


def test_only_the_newest_preview_of_an_image_waits() -> None:
    stream = ImageStream(3)
    first, second = stream.sink(IMAGES[0]), stream.sink(IMAGES[1])
    assert first is not None and second is not None
    first.put(PREVIEWS[0])
    second.put(PREVIEWS[0])
    first.put(PREVIEWS[1])
    assert take_all(stream) == [(1, b"preview 0"), (0, b"preview 1")]
    assert take_all(stream) == []


def test_images_go_first_and_drop_their_own_previews_only() -> None:
    stream = ImageStream(3)
    for params in IMAGES:
        stream.put(params, PREVIEWS[2])
    stream.put(IMAGES[1], IMAGE)
    assert take_all(stream) == [(1, b"image"), (0, b"preview 2")]


def test_a_preview_is_offered_once_and_never_after_a_later_one() -> None:
    stream = ImageStream(3)
    sink = stream.sink(IMAGES[0])
    assert sink is not None and sink.request == PreviewRequest(3, first=0)
    for preview in (PREVIEWS[0], PREVIEWS[2], PREVIEWS[1], PREVIEWS[2]):
        sink.put(preview)
        if preview is PREVIEWS[0]:
            assert take_all(stream) == [(0, b"preview 0")]
    assert take_all(stream) == [(0, b"preview 2")]
    assert sink.request == PreviewRequest(3, first=3)


def test_a_stream_without_previews_has_no_sinks() -> None:
    assert ImageStream(0).sink(IMAGES[0]) is None


def test_an_idle_reader_is_told_so_at_every_interval() -> None:
    async def run() -> list[Read]:
        stream = ImageStream(1)

        async def draw() -> None:
            await asyncio.sleep(35.0)
            stream.put(IMAGES[0], PREVIEWS[0])
            await asyncio.sleep(16.0)
            stream.put(IMAGES[0], IMAGE)

        return await read(stream, asyncio.ensure_future(draw()), idle_seconds=15.0)

    assert run_in_virtual_time(run()) == [None, None, (0, b"preview 0"), None, (0, b"image")]


async def test_every_image_is_streamed_after_its_previews() -> None:
    backend, stream = FakeBackend(), ImageStream(2)
    dispatcher = make_dispatcher(backend)
    context = RequestContext("record")
    work = dispatcher.start_stream(IMAGES, OUTPUT, stream, context)
    assert images_in_flight(dispatcher) == 2
    backend.gate.clear()
    for _ in IMAGES:
        await backend.waiting.acquire()
    assert take_all(stream) == [(0, b"preview 1"), (1, b"preview 1")]
    backend.gate.set()
    images = await read(stream, work)
    assert sorted(event[0] for event in images if event) == [0, 1]
    assert [(params, ctx) for params, _, ctx in backend.calls] == [(params, context) for params in IMAGES]
    assert [result.image for result in work.result()] == [image for _, image in sorted(filter(None, images))]
    assert images_in_flight(dispatcher) == 0


async def test_a_stream_without_previews_asks_the_backend_for_none() -> None:
    backend = FakeBackend()
    work = make_dispatcher(backend).start_stream(IMAGES, OUTPUT, ImageStream(0))
    await work
    assert backend.preview_requests == []


async def test_an_image_that_is_drawn_again_has_no_preview_twice() -> None:
    """The stage is lost after the second of three previews, which the reader has."""

    class Losing(FakeBackend):
        async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
            self.previews = PREVIEWS[:2] if self.errors else PREVIEWS
            return await super().generate(*args, **kwargs)

    backend, stream = Losing(StageLost()), ImageStream(3)
    backend.gate.clear()
    work = make_dispatcher(backend).start_stream(IMAGES[:1], OUTPUT, stream)
    await backend.waiting.acquire()
    assert [request.first for request in backend.preview_requests] == [0, 2]
    assert take_all(stream) == [(0, b"preview 2")]
    backend.gate.set()
    assert len(await read(stream, work)) == 1


async def test_images_that_are_done_are_read_before_the_error_of_another() -> None:
    class Failing(FakeBackend):
        async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
            if args[0].image_index == 1:
                await asyncio.sleep(0.01)
                raise StageLost()
            return await super().generate(*args, **kwargs)

    stream, events = ImageStream(0), list[int]()
    dispatcher = make_dispatcher(Failing())
    work = dispatcher.start_stream(IMAGES, OUTPUT, stream)
    await asyncio.wait({work})
    with pytest.raises(StageLost):
        async for event in stream.events(work, 60.0):
            assert event is not None
            events.append(event.params.image_index)
    assert events == [0]
    assert images_in_flight(dispatcher) == 0


async def test_a_stream_that_is_cancelled_frees_its_images() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    dispatcher = make_dispatcher(backend)
    work = dispatcher.start_stream(IMAGES, OUTPUT, ImageStream(1))
    await backend.waiting.acquire()
    work.cancel()
    await asyncio.wait({work})
    assert (backend.num_cancelled, images_in_flight(dispatcher)) == (2, 0)
    unstarted = dispatcher.start_stream(IMAGES, OUTPUT, ImageStream(1))
    unstarted.cancel()
    await asyncio.wait({unstarted})
    await asyncio.sleep(0)
    assert images_in_flight(dispatcher) == 0


async def test_a_stream_is_admitted_before_it_begins() -> None:
    dispatcher = make_dispatcher(FakeBackend(), max_pictures=1)
    with pytest.raises(QueueFull):
        dispatcher.start_stream(IMAGES, OUTPUT, ImageStream(1))
    await dispatcher.drain()
    with pytest.raises(ShuttingDown):
        dispatcher.start_stream(IMAGES[:1], OUTPUT, ImageStream(1))
    assert not images_in_flight(dispatcher)


def test_a_stream_has_a_deadline() -> None:
    async def run() -> ServiceError | None:
        backend = FakeBackend()
        backend.gate.clear()
        stream = ImageStream(1)
        work = make_dispatcher(backend, deadline_seconds=20.0).start_stream(IMAGES, OUTPUT, stream)
        with pytest.raises(DeadlineExceeded):
            await read(stream, work)
        assert backend.num_cancelled == 2
        return None

    run_in_virtual_time(run())


async def test_a_slow_reader_holds_nothing_back() -> None:
    """It reads one event; the images are drawn, and only the newest of a hundred previews has waited."""
    stream = ImageStream(100)
    numbers = itertools.count()

    async def draw() -> None:
        sink = stream.sink(IMAGES[0])
        assert sink is not None
        for number in itertools.islice(numbers, 100):
            sink.put(Preview(number, f"preview {number}".encode(), PREVIEWS[0].cost))
            await asyncio.sleep(0)

    work = asyncio.ensure_future(draw())
    events = stream.events(work, 60.0)
    first = await anext(events)
    await work
    assert first is not None
    rest = [event async for event in events]
    assert first.content.image != b"preview 99"
    assert [event and event.content.image for event in rest] == [b"preview 99"]
