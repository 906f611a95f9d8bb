"""Real stages of the tiny model in one process: streamed images are the unstreamed ones, and all is charged.

Requests are random and arrive while others are drawn; some are streamed, some are cancelled.
"""

import asyncio
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from PIL import Image

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine import previews
from safelight.pipeline.params import GenerationParams, PreviewRequest
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import DecodeResult, ImageFormat, Preview, RequestContext
from safelight.service.previews import CallbackSink
from safelight.service.settings import Settings

MODEL, SETTINGS = find_model("tiny"), Settings(model="tiny", peak_tflops=1.0)
SCHEDULES = 6


@pytest.fixture(autouse=True)
def generous_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model denoises faster than it decodes, so that its previews would be dropped."""
    for name in ("ALONE_SHARE", "SHARED_SHARE"):
        monkeypatch.setattr(previews, name, 1000.0)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[InProcessPipeline]:
    pipeline = InProcessPipeline(MODEL, SETTINGS)
    pipeline.wait()
    yield pipeline
    pipeline.close()


@dataclass
class Request:
    """One image, and what a caller does with it."""

    params: GenerationParams
    output: ImageFormat
    num_previews: int
    ticks_before: int  # loop iterations until it arrives
    is_cancelled: bool
    previews: list[Preview] = field(default_factory=list)

    async def draw(self, pipeline: InProcessPipeline, context: RequestContext) -> DecodeResult:
        for _ in range(self.ticks_before):
            await asyncio.sleep(0)
        sink = CallbackSink(PreviewRequest(self.num_previews), self.previews.append)
        return await pipeline.generate(
            self.params, self.output, context, None, sink if self.num_previews else None
        )


def random_request(rng: random.Random) -> Request:
    params = GenerationParams(
        prompt=rng.choice(("a red apple", "cat")),
        negative_prompt=rng.choice(("", "blurry")),
        width=64,
        height=rng.choice((64, 96)),
        num_steps=rng.randint(3, 9),
        guidance_scale=rng.choice((1.0, 4.0)),
        solver=rng.choice(("dpmpp_2m", "heun", "ipndm", "ddpm")),
        seed=rng.randrange(2**53),
    )
    return Request(
        params,
        ImageFormat(rng.choice(("png", "webp", "jpeg")), 90),
        num_previews=rng.randint(0, 3),
        ticks_before=rng.choice((0, 0, 50)),
        is_cancelled=rng.random() < 0.2,
    )


async def draw_all(pipeline: InProcessPipeline, requests: list[Request]) -> list[bytes | None]:
    """The files of `requests`, all drawn at the same time; None for those that were cancelled."""
    tasks = [
        asyncio.ensure_future(request.draw(pipeline, RequestContext(str(number))))
        for number, request in enumerate(requests)
    ]
    for request, task in zip(requests, tasks, strict=True):
        if request.is_cancelled:
            await asyncio.sleep(0.005)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result.image if isinstance(result, DecodeResult) else None for result in results]


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_streams_change_no_byte_in_any_batch(pipeline: InProcessPipeline, seed: int) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(6)]
    files = await draw_all(pipeline, requests)
    assert any(file is not None for file in files)
    for request, file in zip(requests, files, strict=True):
        if file is not None:
            alone = await pipeline.generate(request.params, request.output)
            assert file == alone.image, request
        else:
            assert request.is_cancelled


async def test_previews_are_files_of_the_images_size_in_its_format(pipeline: InProcessPipeline) -> None:
    params = replace(random_request(random.Random(0)).params, num_steps=9, height=96)
    for format in ("png", "webp", "jpeg"):
        request = Request(params, ImageFormat(format, 90), 3, 0, is_cancelled=False)
        await request.draw(pipeline, RequestContext())
        assert request.previews
        for preview in request.previews:
            image = Image.open(io.BytesIO(preview.image))
            assert (image.size, image.format) == ((params.width, params.height), format.upper())
            assert "parameters" not in image.info and "safelight" not in image.info


async def test_a_cancelled_stream_leaves_the_engine(pipeline: InProcessPipeline) -> None:
    params = replace(random_request(random.Random(1)).params, num_steps=900)
    sink = CallbackSink(PreviewRequest(3), lambda preview: None)
    drawing = asyncio.ensure_future(pipeline.generate(params, ImageFormat(), RequestContext(), None, sink))
    while not pipeline.denoiser.status().running:
        await asyncio.sleep(0)
    drawing.cancel()
    await asyncio.wait({drawing})
    assert pipeline.denoiser.status().running == 0


async def test_previews_are_charged_to_their_request_alone(pipeline: InProcessPipeline) -> None:
    """What the decoder reports for each record is what its image's usage says."""
    decoder = pipeline.decoder
    decoder.meter.collect_report("s", 0, decoder.status())
    params = replace(random_request(random.Random(2)).params, num_steps=9)
    requests = [
        Request(replace(params, seed=k), ImageFormat(), 2 * (k % 2), 0, is_cancelled=False) for k in range(4)
    ]
    results = await asyncio.gather(
        *(request.draw(pipeline, RequestContext(str(k))) for k, request in enumerate(requests))
    )
    events = decoder.meter.collect_report("s", 1, decoder.status()).events
    for number, result in enumerate(results):
        amounts = [event.amounts for event in events if event.record_id == str(number)]
        costs = result.usage.stages["decode"]
        assert len(amounts) == 1 + len(result.usage.previews)
        assert sum(amount.device_seconds for amount in amounts) == pytest.approx(costs.device_seconds)
        assert sum(amount.flops for amount in amounts) == costs.flops
        assert [p.cost for p in requests[number].previews] == list(result.usage.previews)
        if number % 2 == 0:
            assert not result.usage.previews
