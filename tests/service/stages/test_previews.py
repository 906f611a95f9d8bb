"""Previews in the stages: from the engine to the caller, and their decoding after all images."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
from torch import Tensor

from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import ImageDecoder
from safelight.pipeline.params import GenerationParams, PreviewRequest, StageCost, UsageAmounts
from safelight.service.messages import (
    DenoiseResult,
    EncodedSource,
    ImageFormat,
    Preview,
    PreviewLatents,
    RequestContext,
)
from safelight.service.stages import decode
from safelight.service.stages.decode import DecodeStage
from safelight.service.stages.denoise import DenoiseStage
from safelight.service.stages.preview_budget import PreviewBudget
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.stages.worker import Worker
from safelight.service.usage.events import UsageEvent
from tests.clock import ManualClock
from tests.fakes import USAGE, FakeDecoder, FakeEngine, make_conditioning, make_params

OUTPUT, CONTEXT = ImageFormat("webp", 40), RequestContext("record")


class Latents(str):
    """Latents that `FakeDecoder` returns as pixels."""

    shape = (4, 8, 8)


def latents(content: object, image_id: str = "a", index: int = 0, budget: float = 100.0) -> PreviewLatents:
    content = Latents(content) if isinstance(content, str) else content
    return PreviewLatents(image_id, index, cast(Tensor, content), budget)


def denoised(content: object, image_id: str = "") -> DenoiseResult:
    return DenoiseResult(cast(Tensor, content), USAGE.text, USAGE.encode, USAGE.denoise, image_id)


class GatedDecoder(FakeDecoder):
    """Waits for `gate` before every image and preview, and keeps what it has begun, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[object] = []
        self.has_begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def decode(self, latents: Any) -> Any:
        self._wait(list(latents))
        return super().decode(latents)

    def decode_preview(self, latent: Any, scale: int = 1) -> Any:
        self._wait(latent)
        return super().decode_preview(latent, scale)

    def _wait(self, content: object) -> None:
        self.begun.append(content)
        self.has_begun.release()
        assert self.gate.acquire(timeout=30.0)


def write_image(pixels: Any, output: ImageFormat, params: GenerationParams, model_id: str) -> bytes:
    return f"{pixels} as {output.format} of {params.seed}".encode()


def write_preview(pixels: Any, output: ImageFormat, is_edit: bool) -> bytes:
    return f"{pixels} as {output.format}{' of an edit' * is_edit}".encode()


@pytest.fixture
def decoder() -> GatedDecoder:
    return GatedDecoder()


@pytest.fixture
def stage(decoder: GatedDecoder) -> Iterator[DecodeStage]:
    stage = DecodeStage(lambda: cast(ImageDecoder, decoder), write_image, write_preview)
    yield stage
    for _ in range(20):
        decoder.gate.release()
    stage.close()


async def begin(decoder: GatedDecoder) -> None:
    """Wait until the decoder has begun something."""
    await asyncio.to_thread(decoder.has_begun.acquire)


async def start(*calls: Any) -> list["asyncio.Future[Any]"]:
    """Tasks of `calls`, each of which has queued its work."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_images_go_before_previews_that_came_earlier(stage: DecodeStage, decoder: GatedDecoder) -> None:
    [first] = await start(stage.decode(denoised("image 1"), make_params(), OUTPUT))
    await begin(decoder)
    tasks = await start(
        stage.decode_preview(latents("preview a"), OUTPUT),
        stage.decode_preview(latents("preview b", "b"), OUTPUT),
        stage.decode(denoised("image 2"), make_params(), OUTPUT),
        stage.decode(denoised("image 3"), make_params(), OUTPUT),
    )
    for _ in range(5):
        decoder.gate.release()
    await asyncio.gather(first, *tasks)
    assert decoder.begun == [["image 1"], ["image 2"], ["image 3"], "preview a", "preview b"]


async def test_a_newer_preview_of_an_image_takes_the_place_of_one_that_waits(
    stage: DecodeStage, decoder: GatedDecoder
) -> None:
    [image] = await start(stage.decode(denoised("image"), make_params(), OUTPUT))
    await begin(decoder)
    older, other, newer = await start(
        stage.decode_preview(latents("a 0"), OUTPUT),
        stage.decode_preview(latents("b 0", "b"), OUTPUT),
        stage.decode_preview(latents("a 1", index=1), OUTPUT),
    )
    assert await older is None  # at once, while the decoder is still busy
    for _ in range(3):
        decoder.gate.release()
    await image
    assert ((await other).index, (await newer).index) == (0, 1)
    assert decoder.begun == [["image"], "b 0", "a 1"]


async def test_an_image_drops_its_preview_that_waits(stage: DecodeStage, decoder: GatedDecoder) -> None:
    [busy] = await start(stage.decode(denoised("busy"), make_params(), OUTPUT))
    await begin(decoder)
    waiting, other = await start(
        stage.decode_preview(latents("a 0"), OUTPUT), stage.decode_preview(latents("b 0", "b"), OUTPUT)
    )
    [image] = await start(stage.decode(denoised("image a", "a"), make_params(), OUTPUT))
    assert await waiting is None
    for _ in range(3):
        decoder.gate.release()
    await asyncio.gather(busy, image)
    assert (await other).index == 0
    assert decoder.begun == [["busy"], ["image a"], "b 0"]


async def test_a_cancelled_preview_is_not_decoded(stage: DecodeStage, decoder: GatedDecoder) -> None:
    [busy] = await start(stage.decode(denoised("busy"), make_params(), OUTPUT))
    await begin(decoder)
    [preview] = await start(stage.decode_preview(latents("a 0"), OUTPUT))
    preview.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preview
    for _ in range(2):
        decoder.gate.release()
    await busy
    await stage.decode(denoised("last"), make_params(), OUTPUT)
    assert decoder.begun == [["busy"], ["last"]]


@pytest.mark.parametrize(("budget", "scale"), [(2.5, 1), (1.5, 2)])
async def test_a_preview_is_decoded_within_its_budget_and_charged(
    budget: float, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the cost of the image before it: 2 s. Its wait delays nobody, so it is not reported."""
    clock, decoder = ManualClock(now=100.0), FakeDecoder()
    clock.install(monkeypatch, decode)

    def write(pixels: Any, output: ImageFormat, is_edit: bool) -> bytes:
        clock.advance(0.25)
        return write_preview(pixels, output, is_edit)

    stage = DecodeStage(lambda: cast(ImageDecoder, decoder), write_image, write)
    await stage.decode(denoised("image"), make_params(), OUTPUT, RequestContext("before"))
    result = await stage.decode_preview(latents("x", index=2, budget=budget), OUTPUT, CONTEXT)
    cost = StageCost(0.25, 20 // scale)
    assert result == Preview(2, b"x as webp", cost)
    assert decoder.previews == [("x", scale)]
    report = stage.meter.collect_report("s", 0, stage.status())
    assert report.events[1:] == (UsageEvent("record", UsageAmounts(0.25, 0.0, 20 // scale)),)
    assert (stage.status().images, stage.status().previews) == (1, 1)
    curve = stage.status().curve
    assert curve is not None and curve.ticks_seen == (2 if scale == 1 else 1)
    stage.close()


async def test_a_preview_that_cannot_be_decoded_is_none_and_free(stage: DecodeStage) -> None:
    stage._worker.wait().gate.release()  # type: ignore[attr-defined]
    broken = ArithmeticError("infinite")
    broken.shape = (4, 8, 8)  # type: ignore[attr-defined]
    assert await stage.decode_preview(latents(broken), OUTPUT, CONTEXT) is None
    assert stage.meter.collect_report("s", 0, stage.status()).events == ()


def test_the_finest_scale_that_fits_is_chosen_by_what_it_took() -> None:
    budget, estimates = PreviewBudget(), {1: 8.0, 2: 2.0, 4: 0.5}
    assert [budget.choose((8, 8), seconds, estimates) for seconds in (8.0, 7.9, 2.0, 1.9)] == [1, 2, 2, 4]
    for _ in range(30):
        budget.spend((8, 8), 2, 3.0)
    assert budget.choose((8, 8), 2.5, estimates) == 4  # measured, it takes longer than was estimated
    assert budget.choose((8, 12), 2.5, estimates) == 2  # another size has its own costs


def test_a_preview_that_fits_no_budget_waits_until_enough_was_saved() -> None:
    """Of previews that take two and a half budgets, two of five are drawn."""
    budget, drawn = PreviewBudget(), list[int]()
    for number in range(100):
        if (scale := budget.choose((8, 8), 0.25, {1: 8.0, 4: 0.625})) is not None:
            budget.spend((8, 8), scale, 0.625)
            drawn.append(number)
    assert drawn[:4] == [2, 4, 7, 9]
    assert len(drawn) == 40


def test_a_pause_does_not_save_for_ever() -> None:
    budget = PreviewBudget()
    for _ in range(1000):
        budget.choose((8, 8), 0.1, {1: 50.0})
    drawn = 0
    while budget.choose((8, 8), 0.1, {1: 0.5}) is not None:
        budget.spend((8, 8), 1, 0.5)
        drawn += 1
    assert drawn == 1


@pytest.mark.parametrize("is_edit", [False, True])
async def test_a_previews_file_is_written_as_that_of_an_edit_if_it_is_one(is_edit: bool) -> None:
    """And what the mask keeps is pasted into it."""

    class Image:
        def paste(self, pixels: object) -> str:
            return f"{pixels}, pasted"

    stage = DecodeStage(lambda: cast(ImageDecoder, FakeDecoder()), write_image, write_preview)
    source = EncodedSource(cast(Any, None), cast(Any, Image()))
    await stage.decode(denoised("image"), make_params(), OUTPUT)
    preview = await stage.decode_preview(latents("x"), OUTPUT, CONTEXT, source if is_edit else None)
    assert preview is not None
    assert preview.image == (b"x, pasted as webp of an edit" if is_edit else b"x as webp")
    stage.close()


async def test_a_preview_that_would_cost_too_much_is_dropped_and_free(stage: DecodeStage) -> None:
    assert await stage.decode_preview(latents("x", budget=0.0), OUTPUT, CONTEXT) is None
    assert stage.meter.collect_report("s", 0, stage.status()).events == ()


async def test_the_denoiser_gives_previews_before_its_result_with_the_images_id() -> None:
    stage = DenoiseStage(lambda: cast(Engine, FakeEngine()))
    given: list[PreviewLatents] = []
    first, second = await asyncio.gather(
        stage.generate(
            make_conditioning(), make_params(num_steps=5), CONTEXT, None, PreviewRequest(3), given.append
        ),
        stage.generate(
            make_conditioning(),
            make_params(num_steps=5),
            CONTEXT,
            None,
            PreviewRequest(3, first=2),
            given.append,
        ),
    )
    plain = await stage.generate(make_conditioning(), make_params(num_steps=5))
    stage.close()
    assert plain.image_id == "" and len({first.image_id, second.image_id, ""}) == 3
    by_image = {
        image_id: [
            (preview.index, cast(Any, preview.latents)) for preview in given if preview.image_id == image_id
        ]
        for image_id in (first.image_id, second.image_id)
    }
    assert by_image == {
        first.image_id: [(0, "preview 0"), (1, "preview 1"), (2, "preview 2")],
        second.image_id: [(2, "preview 2")],
    }
    assert {preview.budget_seconds for preview in given} == {0.5}


async def test_a_workers_calls_are_in_the_order_of_their_priorities() -> None:
    gate, order = threading.Event(), list[int]()
    worker = Worker(lambda: order, UsageMeter("test"))

    def append(number: int, numbers: list[int]) -> None:
        numbers.append(number)

    blocking = worker.submit(lambda _: gate.wait(30.0))
    calls = [worker.submit(partial(append, k), priority=k % 2) for k in range(6)]
    calls[3].cancel()
    gate.set()
    await asyncio.wrap_future(blocking)
    for call in (*calls[:3], *calls[4:]):
        await asyncio.wrap_future(call)
    assert order == [0, 2, 4, 1, 5]
    worker.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        worker.submit(len)


async def test_a_worker_that_is_closed_cancels_the_calls_that_wait() -> None:
    gate, has_begun = threading.Event(), threading.Event()
    worker = Worker(lambda: None, UsageMeter("test"))

    def block(_: None) -> bool:
        has_begun.set()
        return gate.wait(30.0)

    running = worker.submit(block)
    waiting = [worker.submit(lambda _: None, priority) for priority in (0, 1)]
    assert has_begun.wait(30.0)
    closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
    gate.set()
    await closing
    assert running.result() is True
    assert all(call.done() for call in waiting)
