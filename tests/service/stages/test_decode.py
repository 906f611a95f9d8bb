"""Decoding: every image gets its own bytes and the account of its whole way."""

import time

import pytest

from safelight.service.errors import BrokenImage
from safelight.service.messages import DenoiseResult, ImageFormat
from safelight.service.stages.decode import DecodeJob, DecodeStage
from tests.fakes import USAGE, FakeDecoder, fake_image, make_params


async def test_a_batch_is_cut_to_what_the_decoder_takes():
    decoder = FakeDecoder()

    def write(pixels, output, params):
        time.sleep(0.01)
        return pixels + fake_image(params, output)

    stage = DecodeStage(lambda: decoder, write)
    images = [make_params(image_index=k) for k in range(3)]
    jobs = [
        DecodeJob(
            DenoiseResult(bytes([k]), USAGE.text, USAGE.encode, USAGE.denoise), p, ImageFormat("webp", k)
        )
        for k, p in enumerate(images)
    ]
    drawn = await stage.decode_batch(jobs)
    assert [len(batch) for batch in decoder.batches] == [2, 1]
    assert [d.image for d in drawn] == [
        bytes([k]) + fake_image(p, ImageFormat("webp", k)) for k, p in enumerate(images)
    ]
    assert (drawn[0].usage.text, drawn[0].usage.encode, drawn[0].usage.denoise) == (
        USAGE.text,
        USAGE.encode,
        USAGE.denoise,
    )
    assert 2.01 < drawn[0].usage.decode.device_seconds < 3.0  # the network's, and the file's
    assert drawn[0].usage.decode.flops == 20
    charged = stage.books.state("s", 0, stage.status()).charges
    assert [charge.device_seconds for charge in charged] == [
        image.usage.decode.device_seconds for image in drawn
    ]
    assert stage.status().images == 3
    assert stage.status().curve.seconds_for(20) == pytest.approx(2.0)
    stage.close()


async def test_what_is_no_image_takes_no_other_with_it():
    stage = DecodeStage(FakeDecoder, lambda pixels, output, params: pixels)
    latents = [b"a", ArithmeticError("the decoder left numbers that are not finite"), b"c"]
    denoised = [DenoiseResult(latent, USAGE.text, USAGE.encode, USAGE.denoise) for latent in latents]
    one, broken, three = await stage.decode_batch(
        [DecodeJob(each, make_params(), ImageFormat()) for each in denoised]
    )
    assert (one.image, three.image) == (b"a", b"c")
    assert str(broken) == "The model drew no image: the decoder left numbers that are not finite."
    assert (broken.status, broken.headers) == (503, {})  # nothing about trying again
    with pytest.raises(BrokenImage):
        await stage.decode(denoised[1], make_params(), ImageFormat())
    stage.close()
