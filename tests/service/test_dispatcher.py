"""The dispatcher: all images of a request or none, deadline, retry and cancellation."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import EditParams, GenerationParams
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import (
    ClientGone,
    DeadlineExceeded,
    PoisonedRequest,
    QueueFull,
    ServiceError,
    ShuttingDown,
    StageFailed,
    StageLost,
)
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.model_backends import ModelBackends
from safelight.service.previews import PreviewSink
from safelight.service.retries import MAX_RETRIES
from safelight.service.settings import Settings
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.client import LocalLedger
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.reporter import Outbox
from tests.fakes import MODEL, SOURCE, FakeBackend, images_in_flight, make_params
from tests.service.asgi import AsgiClient, Message
from tests.virtual_time import run_in_virtual_time


def make_dispatcher(backend: FakeBackend, **settings: Any) -> RequestDispatcher:
    metrics = Metrics()
    metrics.serve([MODEL.id])
    return RequestDispatcher(ModelBackends.of_one(MODEL, backend), metrics, Settings(**settings))


def retried(dispatcher: RequestDispatcher) -> dict[str, int]:
    """How many images were sent again, by model; what the ledger is told, and so only once."""
    return dict(dispatcher._metrics.outbox.collect("gateway", 0).retried)


UPLOAD = Upload(b"image")
IMAGES = [make_params(image_index=k) for k in range(3)]


async def test_images_are_in_the_order_of_the_request() -> None:
    backend = FakeBackend()
    results = await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert [params.image_index for params, _ in backend.drawn] == [0, 1, 2]
    assert [f"image_index={k}" in result.image.decode() for k, result in enumerate(results)] == [True] * 3


async def test_a_stage_that_does_not_answer_has_its_last_report_or_may_be_asleep() -> None:
    """The encoder answers, the denoiser is too busy, and the decoder has no replica; the ledger knows two."""

    class ReportedLedger(LocalLedger):
        async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
            return {"encode": StageStatus(images=1), "denoise": StageStatus(images=2), "decode": None}

    backend = FakeBackend(stages={"encode": StageStatus(images=7), "denoise": None, "decode": None})
    asleep = Settings(denoise_replicas="0-2", decode_replicas="0-2")
    for settings, decoder in ((Settings(), None), (asleep, StageStatus(is_asleep=True))):
        dispatcher = RequestDispatcher(
            ModelBackends.of_one(MODEL, backend), Metrics(), settings, ReportedLedger(settings)
        )
        assert await dispatcher.status() == {
            "encode": StageStatus(images=7),
            "denoise": StageStatus(images=2),
            "decode": decoder,
        }


async def test_draining_finishes_requests_in_flight_and_refuses_new_ones() -> None:
    backend = FakeBackend()
    dispatcher = make_dispatcher(backend)
    backend.gate.clear()
    drawing = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    draining = asyncio.ensure_future(dispatcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await dispatcher.generate(IMAGES[:1], ImageFormat())
    assert not draining.done()
    backend.gate.set()
    assert len(await drawing) == 3
    await asyncio.wait_for(draining, 5.0)


async def test_a_lost_image_is_sent_again_with_the_same_arguments_and_counted() -> None:
    backend = FakeBackend(StageLost())
    dispatcher = make_dispatcher(backend)
    image = make_params(image_index=2, seed=9, solver="ddim", eta=0.5, guidance_interval=(0.25, 0.75))
    output, context = ImageFormat("webp", 40), RequestContext("record", "00-trace-span-01")
    [result] = await dispatcher.generate([image], output, context)
    assert backend.calls == [(image, output, context)] * 2
    assert backend.drawn == [(image, output)]
    assert str(image) in result.image.decode()
    assert retried(dispatcher) == {MODEL.id: 1}


async def test_only_the_lost_image_of_a_request_is_sent_again() -> None:
    backend = FakeBackend(StageLost())
    results = await make_dispatcher(backend).generate(IMAGES, ImageFormat())
    assert sorted(params.image_index for params, *_ in backend.calls) == [0, 0, 1, 2]
    assert [f"image_index={k}" in result.image.decode() for k, result in enumerate(results)] == [True] * 3


async def test_an_upload_is_prepared_once_for_all_images_and_again_for_a_lost_one() -> None:
    """What a lost stage held may be lost, too; the size is that of the source."""
    backend = FakeBackend()
    edits = [make_params(image_index=k, edit=EditParams(0.5)) for k in range(2)]
    results = await make_dispatcher(backend).generate(edits, ImageFormat(), upload=UPLOAD)
    assert backend.uploads == [UPLOAD]
    assert [(params.width, params.height) for params, _ in backend.drawn] == [(16, 8)] * 2
    assert [result.usage.source for result in results] == [SOURCE, None]
    lossy = FakeBackend()
    lossy.image_errors = [StageLost()]
    dispatcher = make_dispatcher(lossy)
    await dispatcher.generate(edits, ImageFormat(), upload=UPLOAD)
    assert lossy.uploads == [UPLOAD] * 2 and len(lossy.drawn) == 2
    assert retried(dispatcher) == {MODEL.id: 1}


async def test_an_upload_whose_stage_is_lost_is_prepared_again() -> None:
    backend = FakeBackend(StageLost())
    await make_dispatcher(backend).generate([make_params(edit=EditParams(1.0))], ImageFormat(), upload=UPLOAD)
    assert backend.uploads == [UPLOAD] * 2


@pytest.mark.parametrize("error", [InvalidParams("image", "no"), StageFailed()], ids=str)
async def test_an_upload_that_is_refused_is_not_prepared_again(error: Exception) -> None:
    backend = FakeBackend(error)
    with pytest.raises(ServiceError):
        await make_dispatcher(backend).generate([make_params()], ImageFormat(), upload=UPLOAD)
    assert backend.uploads == [UPLOAD] and backend.calls == []


async def test_an_image_that_is_lost_again_and_again_is_503() -> None:
    backend = FakeBackend(*(StageLost() for _ in range(9)))
    with pytest.raises(StageLost) as lost:
        await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert (lost.value.status, lost.value.headers) == (503, {"retry-after": "5"})
    assert len(backend.calls) == 1 + MAX_RETRIES


async def test_retries_of_all_requests_have_one_budget() -> None:
    backend = FakeBackend(*(StageLost() for _ in range(99)))
    dispatcher = make_dispatcher(backend, max_pictures=1)
    for retries in (2, 0):  # two for each image that may be in flight
        backend.calls.clear()
        with pytest.raises(StageLost):
            await dispatcher.generate(IMAGES[:1], ImageFormat())
        assert len(backend.calls) == 1 + retries


async def test_an_image_of_which_the_denoiser_dies_is_drawn_alone_and_then_fails_alone() -> None:
    backend = FakeBackend(*(StageLost(stage="denoise") for _ in range(9)))
    with pytest.raises(PoisonedRequest):
        await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert [context.is_alone for *_, context in backend.calls] == [False, False, True]


async def test_one_image_at_a_time_is_drawn_alone() -> None:
    """Three images lose the denoiser twice; the last of them is what it dies of."""
    backend = PoisonedBackend(poison=2)
    dispatcher = make_dispatcher(backend)
    answers = await asyncio.gather(
        *(dispatcher.generate([image], ImageFormat()) for image in IMAGES), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [list, list, PoisonedRequest]
    assert backend.most_alone == 1
    assert [context.is_alone for *_, context in backend.calls].count(True) == 3


class PoisonedBackend(FakeBackend):
    """Dies, with all that is in it, whenever the image of index `poison` is."""

    def __init__(self, poison: int) -> None:
        super().__init__()
        self._poison = poison
        self._running: list[asyncio.Future[None]] = []
        self._num_alone = self.most_alone = 0

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        self._num_alone += context.is_alone
        self.most_alone = max(self.most_alone, self._num_alone)
        end = asyncio.get_running_loop().create_future()
        self._running.append(end)
        try:
            for moment in range(9):
                await asyncio.sleep(0)
                if params.image_index == self._poison and moment == 4:
                    self._die()
            if end.done():
                self.calls.append((params, output, context))
                end.result()
            return await super().generate(params, output, context, source, previews)
        finally:
            self._running.remove(end)
            self._num_alone -= context.is_alone

    def _die(self) -> None:
        for image in self._running:
            if not image.done():
                image.set_exception(StageLost(stage="denoise"))


@pytest.mark.parametrize("error", [StageFailed(), QueueFull(), ValueError("x")])
async def test_other_errors_are_not_retried(error: Exception) -> None:
    backend = FakeBackend(error)
    with pytest.raises(ServiceError):
        await make_dispatcher(backend).generate(IMAGES[:1], ImageFormat())
    assert len(backend.calls) == 1 and backend.drawn == []


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


def test_the_deadline_cancels_every_image() -> None:
    backend = FakeBackend()
    backend.gate.clear()

    async def generate() -> float:
        with pytest.raises(DeadlineExceeded):
            await make_dispatcher(backend, deadline_seconds=300.0).generate(IMAGES, ImageFormat())
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(generate()) == pytest.approx(300.0)
    assert backend.num_cancelled == 3


def test_an_image_that_is_sent_again_has_no_new_deadline() -> None:
    backend = SlowlyLosingBackend()

    async def generate() -> float:
        with pytest.raises(DeadlineExceeded):
            await make_dispatcher(backend, deadline_seconds=300.0).generate(IMAGES[:1], ImageFormat())
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(generate()) == pytest.approx(300.0)
    assert len(backend.calls) == 2


class SlowlyLosingBackend(FakeBackend):
    """Loses the first image after 200 seconds, and never answers after that."""

    async def generate(self, *args: Any) -> Any:
        self.calls.append(args)
        await asyncio.sleep(200.0 if len(self.calls) == 1 else 1e9)
        raise StageLost


async def finish(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    await dispatcher.generate(IMAGES, ImageFormat())


async def fail(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.errors = [StageFailed()]
    with pytest.raises(StageFailed):
        await dispatcher.generate(IMAGES, ImageFormat())


async def fail_by_a_bug(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.errors = [KeyError("x")]
    with pytest.raises(ServiceError):
        await dispatcher.generate(IMAGES, ImageFormat())


async def fail_after_a_retry(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.errors = [StageLost() for _ in range(len(IMAGES) * (1 + MAX_RETRIES))]
    with pytest.raises(StageLost):
        await dispatcher.generate(IMAGES, ImageFormat())
    backend.errors = []


async def finish_after_a_retry(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.errors = [StageLost()]
    await dispatcher.generate(IMAGES, ImageFormat())


async def be_cancelled(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.gate.clear()
    generating = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    assert images_in_flight(dispatcher) == 3
    generating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await generating
    backend.gate.set()


async def exceed_the_deadline(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    backend.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await dispatcher.generate(IMAGES, ImageFormat())
    backend.gate.set()


async def be_refused(dispatcher: RequestDispatcher, backend: FakeBackend) -> None:
    with pytest.raises(QueueFull):
        await dispatcher.generate([*IMAGES, *IMAGES], ImageFormat())
    assert backend.calls == []


@pytest.mark.parametrize(
    "leave",
    [
        finish,
        finish_after_a_retry,
        fail,
        fail_by_a_bug,
        fail_after_a_retry,
        be_cancelled,
        exceed_the_deadline,
        be_refused,
    ],
)
def test_a_request_leaves_its_room_to_the_next_however_it_ends(
    leave: Callable[[RequestDispatcher, FakeBackend], Awaitable[None]],
) -> None:
    async def leave_and_fill() -> None:
        backend = FakeBackend()
        dispatcher = make_dispatcher(backend, max_pictures=len(IMAGES))
        await leave(dispatcher, backend)
        assert images_in_flight(dispatcher) == 0
        assert len(await dispatcher.generate(IMAGES, ImageFormat())) == len(IMAGES)
        assert images_in_flight(dispatcher) == 0

    run_in_virtual_time(leave_and_fill())


async def test_more_images_than_max_pictures_are_refused() -> None:
    backend = FakeBackend()
    backend.gate.clear()
    dispatcher = make_dispatcher(backend, max_pictures=4)
    first = asyncio.ensure_future(dispatcher.generate(IMAGES, ImageFormat()))
    await backend.waiting.acquire()
    with pytest.raises(QueueFull):
        await dispatcher.generate(IMAGES[:2], ImageFormat())
    second = asyncio.ensure_future(dispatcher.generate(IMAGES[:1], ImageFormat()))  # the last place
    backend.gate.set()
    assert [len(await first), len(await second)] == [3, 1]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[UsageRecord]:
    """The usage records of the requests that have ended."""
    records: list[UsageRecord] = []
    monkeypatch.setattr(Outbox, "put", lambda self, record: records.append(record))
    return records


async def test_a_client_that_disconnects_cancels_its_images(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    backend.gate.clear()
    client = AsgiClient.of({"prompt": "p", "n": 2})
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
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
    client = AsgiClient.of({"prompt": "p"})
    answering = asyncio.ensure_future(client.call(build_gateway(backend, MODEL, Settings())))
    await backend.waiting.acquire()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert backend.num_cancelled == 1
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_a_client_that_disconnects_within_its_body_is_recorded(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    client = AsgiClient(b"{", is_whole=False)
    client.disconnected.set()
    await client.call(build_gateway(backend, MODEL, Settings()))
    assert [r.outcome for r in records] == [RequestOutcome.ABORTED]


async def test_an_error_while_reading_the_body_is_a_client_that_disconnected(
    backend: FakeBackend, records: list[UsageRecord]
) -> None:
    """Serve's proxy then lets `receive` raise one of Ray's exceptions."""

    async def broken() -> Message:
        raise RuntimeError("the task is canceled before it executes")

    client = AsgiClient.of({})
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
    client = AsgiClient.of(body)
    await client.call(build_gateway(FakeBackend(*errors), MODEL, Settings()))
    assert client.status == status
    assert [(r.outcome, r.code) for r in records] == [(outcome, code)]
    assert len(records[0].image_usages) == (1 if outcome is RequestOutcome.DONE else 0)
