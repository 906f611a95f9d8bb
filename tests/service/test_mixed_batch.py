"""Requests of every kind in one batch: each file is byte for byte that of the same request alone.

Generations, streams with previews, edits and inpaintings, of mixed sizes, steps, solvers, guidance and file
formats, go through the real stages of the model `tiny` at the same time.
"""

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine import previews
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.params import EditParams, GenerationParams, PreviewRequest
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import DenoiseResult, ImageFormat, Preview, Upload
from safelight.service.previews import CallbackSink
from safelight.service.settings import Settings
from tests.service.http.uploads import mask, photo, png

MODEL, SETTINGS = find_model("tiny"), Settings(model="tiny", peak_tflops=1.0)
SHORT, LONG = 12, 200  # batches


@dataclass(frozen=True)
class Request:
    """One image as a client asks for it."""

    params: GenerationParams
    output: ImageFormat
    num_previews: int  # 0: it is not streamed

    @property
    def kind(self) -> str:
        edit = self.params.edit
        if edit is not None:
            return "inpainting" if edit.is_inpainting else "edit"
        return "stream" if self.num_previews else "generation"

    @property
    def upload(self) -> Upload | None:
        """Of an edit; its pixels follow the seed."""
        edit, size = self.params.edit, (self.params.width, self.params.height)
        if edit is None:
            return None
        pixels = np.roll(np.asarray(photo(*size)), self.params.seed, axis=1)
        file = png(Image.fromarray(pixels))
        return Upload(file, png(mask(*size)) if edit.is_inpainting else None, size)


@dataclass(frozen=True)
class Answer:
    """What a client gets of one request."""

    file: bytes
    previews: dict[int, bytes]
    ticks: int


@st.composite
def requests(draw: st.DrawFn) -> Request:
    kind = draw(st.sampled_from(["generation", "stream", "edit", "inpainting"]))
    solver = draw(st.sampled_from([name for name in MODEL.solvers if name != "plms"]))  # it needs many steps
    width, height = draw(st.sampled_from([(64, 64), (64, 96), (96, 64)]))
    strength = draw(st.sampled_from([0.3, 0.6, 1.0]))
    params = GenerationParams(
        prompt=draw(st.sampled_from(["a red apple", "cat"])),
        negative_prompt=draw(st.sampled_from(["", "blurry"])),
        width=width,
        height=height,
        num_steps=draw(st.integers(3, 9)),
        guidance_scale=draw(st.sampled_from([1.0, 4.0, 8.0])),
        solver=solver,
        guidance_rescale=draw(st.sampled_from([0.0, 0.7])),
        seed=draw(st.integers(0, 9)),
        edit=None if kind in ("generation", "stream") else EditParams(strength, kind == "inpainting"),
    )
    output = ImageFormat(draw(st.sampled_from(["png", "webp", "jpeg"])), draw(st.sampled_from([60, 100])))
    num_previews = {"generation": 0, "stream": 3}.get(kind, draw(st.sampled_from([0, 2])))
    return Request(params, output, num_previews)


class Stages:
    """The stages in this process, whose engine begins when it has all samples of a batch."""

    def __init__(self, pipeline: InProcessPipeline, patch: pytest.MonkeyPatch) -> None:
        self._pipeline = pipeline
        self._num_missing = 0  # samples of the batch that the denoiser has not got
        self._may_tick = threading.Event()
        self._alone: dict[Request, Answer] = {}
        denoise, step = pipeline.denoiser.generate, Engine.step

        async def count_and_denoise(*args: Any) -> DenoiseResult:
            self._num_missing -= 1
            if not self._num_missing:
                self._may_tick.set()
            return await denoise(*args)

        def wait_and_step(engine: Engine) -> list[SampleOutcome]:
            assert self._may_tick.wait(60.0)
            return step(engine)

        patch.setattr(pipeline.denoiser, "generate", count_and_denoise)
        patch.setattr(Engine, "step", wait_and_step)

    @property
    def num_ticks(self) -> int:
        return sum(self._pipeline.denoiser.meter.totals.ticks.seconds.counts)

    def alone(self, request: Request) -> Answer:
        if request not in self._alone:
            [self._alone[request]] = self.draw([request])
        return self._alone[request]

    def draw(self, batch: Sequence[Request]) -> list[Answer]:
        """Draw all requests at the same time."""
        return asyncio.run(self._draw_all(batch))

    async def _draw_all(self, batch: Sequence[Request]) -> list[Answer]:
        self._may_tick.clear()
        self._num_missing = len(batch)
        return list(await asyncio.gather(*map(self._draw, batch)))

    async def _draw(self, request: Request) -> Answer:
        source = None if request.upload is None else await self._pipeline.prepare(request.upload)
        taken: list[Preview] = []
        sink = CallbackSink(PreviewRequest(request.num_previews), taken.append)
        result = await self._pipeline.generate(
            request.params, request.output, source=source, previews=sink if request.num_previews else None
        )
        images = {preview.index: preview.image for preview in taken}
        return Answer(result.image, images, result.usage.denoise.ticks)


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    pipeline = InProcessPipeline(MODEL, SETTINGS)
    pipeline.wait()
    with pytest.MonkeyPatch.context() as patch:
        # the tiny model denoises faster than it decodes, so that its previews would be dropped
        for name in ("ALONE_SHARE", "SHARED_SHARE"):
            patch.setattr(previews, name, 1000.0)
        yield Stages(pipeline, patch)
    pipeline.close()


@pytest.fixture(scope="module")
def num_batches(request: pytest.FixtureRequest) -> int:
    return LONG if request.config.getoption("--long") else SHORT


def test_every_file_of_a_mixed_batch_is_that_of_its_request_alone(stages: Stages, num_batches: int) -> None:
    kinds: set[str] = set()
    ticks = sample_ticks = num_previews = 0

    @settings(
        max_examples=num_batches, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(requests(), min_size=3, max_size=6, unique=True))
    def check(batch: list[Request]) -> None:
        nonlocal ticks, sample_ticks, num_previews
        expected = [stages.alone(request) for request in batch]
        ticks_before = stages.num_ticks
        answers = stages.draw(batch)
        ticks += stages.num_ticks - ticks_before
        for request, answer, alone in zip(batch, answers, expected, strict=True):
            assert answer.file == alone.file, request
            for index in answer.previews.keys() & alone.previews.keys():  # the decoder may drop some
                num_previews += 1
                assert answer.previews[index] == alone.previews[index], (request, index)
            sample_ticks += answer.ticks
            kinds.add(request.kind)

    check()
    assert kinds == {"generation", "stream", "edit", "inpainting"}
    assert sample_ticks > 1.5 * ticks, "too few ticks were shared with batch-mates"
    assert num_previews > num_batches, "too few previews were compared"


@pytest.mark.parametrize("changes", [{"seed": 10}, {"image_index": 1}, {"num_steps": 5}], ids=str)
def test_the_comparison_can_fail(stages: Stages, changes: dict[str, Any]) -> None:
    """Pixels are compared: a file's bytes hold its parameters, so they differ in any case."""
    params = GenerationParams("cat", "", 64, 64, 4, 4.0, "ddpm", 1)
    first, second = (
        stages.alone(Request(request, ImageFormat("png"), 2))
        for request in (params, replace(params, **changes))
    )
    pixels = [Image.open(io.BytesIO(answer.file)).tobytes() for answer in (first, second)]
    assert pixels[0] != pixels[1]
