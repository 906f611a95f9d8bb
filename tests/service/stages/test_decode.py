"""Decoding: every image gets its own bytes and its usage in all stages."""

from typing import Any, cast

import pytest
from torch import Tensor

from safelight.pipeline.engine.image_decoder import ImageDecoder
from safelight.pipeline.params import GenerationParams, StageCost, UsageAmounts
from safelight.service.errors import BrokenImage
from safelight.service.messages import DenoiseResult, ImageFormat, RequestContext
from safelight.service.stages import batched_stage, decode
from safelight.service.stages.decode import DecodeJob, DecodeStage, image_or_raise
from safelight.service.usage.events import UsageEvent
from tests.clock import ManualClock
from tests.fakes import USAGE, FakeDecoder, fake_image, make_params


def denoised(latents: object) -> DenoiseResult:
    """The result of denoising with `latents` for `FakeDecoder`, which returns them."""
    return DenoiseResult(cast(Tensor, latents), USAGE.text, USAGE.encode, USAGE.denoise)


def no_preview(pixels: Any, output: ImageFormat, is_edit: bool) -> bytes:
    raise AssertionError("no test here decodes a preview")


async def test_jobs_are_split_into_batches_that_the_decoder_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, clock = FakeDecoder(), ManualClock(now=100.0)
    clock.install(monkeypatch, decode, batched_stage)

    def write(pixels: Any, output: ImageFormat, params: GenerationParams, model_id: str) -> bytes:
        clock.advance(0.25)
        return bytes(pixels) + fake_image(params, output)

    stage = DecodeStage(lambda: cast(ImageDecoder, decoder), write, no_preview)
    images = [make_params(image_index=k) for k in range(3)]
    jobs = [
        DecodeJob(
            denoised(bytes([k])),
            p,
            ImageFormat("webp", k),
            RequestContext(f"record {k}"),
            arrived=97.0 + k,
        )
        for k, p in enumerate(images)
    ]
    results = [image_or_raise(result) for result in await stage.run_batch(jobs)]
    assert [len(batch) for batch in decoder.batches] == [2, 1]
    assert [result.image for result in results] == [
        bytes([k]) + fake_image(p, ImageFormat("webp", k)) for k, p in enumerate(images)
    ]
    assert (results[0].usage.text, results[0].usage.encode, results[0].usage.denoise) == (
        USAGE.text,
        USAGE.encode,
        USAGE.denoise,
    )
    # the decoder's 2 s and the 0.25 s of writing the file, after a wait since the job arrived
    costs = [StageCost(2.25, 20, queue_seconds=3.0 - k) for k in range(3)]
    assert [result.usage.decode for result in results] == costs
    assert stage.meter.collect_report("s", 0, stage.status()).events == tuple(
        UsageEvent(f"record {k}", UsageAmounts(2.25, 3.0 - k, 20)) for k in range(3)
    )
    assert stage.status().images == 3
    curve = stage.status().curve
    assert curve is not None and curve.seconds_for(20) == pytest.approx(2.0)
    stage.close()


async def test_a_broken_image_does_not_break_its_batch_mates() -> None:
    stage = DecodeStage(
        lambda: cast(ImageDecoder, FakeDecoder()), lambda pixels, *_: cast(bytes, pixels), no_preview
    )
    latents = [b"a", ArithmeticError("the decoder left numbers that are not finite"), b"c"]
    jobs = [DecodeJob(denoised(latent), make_params(), ImageFormat()) for latent in latents]
    first, broken, third = await stage.run_batch(jobs)
    assert (image_or_raise(first).image, image_or_raise(third).image) == (b"a", b"c")
    assert isinstance(broken, BrokenImage)
    assert str(broken) == "The model drew no image: the decoder left numbers that are not finite."
    assert (broken.status, broken.headers) == (503, {"x-should-retry": "false"})  # no retry-after
    assert len(stage.meter.collect_report("s", 0, stage.status()).events) == 2
    with pytest.raises(BrokenImage):
        await stage.decode(jobs[1].denoised, make_params(), ImageFormat())
    assert stage.meter.collect_report("s", 1, stage.status()).events == ()
    stage.close()
