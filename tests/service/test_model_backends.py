"""The backends of the served models, while these change."""

import asyncio

import pytest

from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import ModelNotFound, QueueFull
from safelight.service.messages import ImageFormat, RequestContext
from safelight.service.model_backends import ModelBackend, ModelBackends
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from tests.fakes import MODEL, FakeBackend, make_params
from tests.service.two_models import OTHER

IMAGES = [make_params(image_index=k) for k in range(2)]


def make_entries() -> tuple[ModelBackend, ModelBackend]:
    return ModelBackend(MODEL, FakeBackend()), ModelBackend(OTHER, FakeBackend())


def drawn(entry: ModelBackend) -> int:
    assert isinstance(entry.backend, FakeBackend)
    return len(entry.backend.drawn)


async def test_a_request_is_drawn_by_its_model_and_one_without_by_the_first() -> None:
    first, second = make_entries()
    dispatcher = RequestDispatcher(ModelBackends([first, second]), Metrics(), Settings())
    await dispatcher.generate(IMAGES, ImageFormat(), RequestContext(model=OTHER.id))
    assert (drawn(first), drawn(second)) == (0, 2)
    await dispatcher.generate(IMAGES, ImageFormat())
    assert (drawn(first), drawn(second)) == (2, 2)
    with pytest.raises(ModelNotFound, match="'gone' is not served here any more"):
        await dispatcher.generate(IMAGES, ImageFormat(), RequestContext(model="gone"))


async def test_a_full_queue_of_one_model_keeps_out_no_image_of_another() -> None:
    first, second = make_entries()
    metrics = Metrics()
    dispatcher = RequestDispatcher(ModelBackends([first, second]), metrics, Settings(max_pictures=3))
    assert isinstance(first.backend, FakeBackend)
    first.backend.gate.clear()
    context = RequestContext(model=MODEL.id)
    waiting = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat(), context))
    await first.backend.waiting.acquire()
    with pytest.raises(QueueFull):
        await dispatcher.generate(IMAGES, ImageFormat(), context)
    assert len(await dispatcher.generate(IMAGES, ImageFormat(), RequestContext(model=OTHER.id))) == 2
    in_flight = dict(metrics.outbox.collect("gateway", 0).in_flight)
    assert in_flight == {MODEL.id: 2, OTHER.id: 0}
    first.backend.gate.set()
    await waiting


async def test_images_of_a_replaced_model_are_finished_where_they_began() -> None:
    """A retry too: the request keeps its backend until it ends, and counts as retired until then."""
    first, old = make_entries()
    new = ModelBackend(OTHER, FakeBackend())
    backends = ModelBackends([first, old])
    dispatcher = RequestDispatcher(backends, Metrics(), Settings())
    assert isinstance(old.backend, FakeBackend)
    old.backend.gate.clear()
    context = RequestContext(model=OTHER.id)
    under_way = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat(), context))
    await old.backend.waiting.acquire()
    assert backends.retired_in_flight == 0
    backends.replace([first, new])
    assert backends.retired_in_flight == 2 and backends.in_flight(OTHER.id) == 2
    assert len(await dispatcher.generate(IMAGES, ImageFormat(), context)) == 2
    assert (drawn(old), drawn(new)) == (0, 2)
    old.backend.gate.set()
    assert len(await under_way) == 2
    assert (drawn(old), drawn(new)) == (2, 2)
    assert backends.retired_in_flight == backends.in_flight() == 0
