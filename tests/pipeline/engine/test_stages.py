"""Encoder, decoder, noise, flops and image files of the pipeline."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.diffusion import noise
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.image_files import FORMATS, encode_image, parameters_text
from safelight.pipeline.engine.text_encoder import TextEncoder
from tests.pipeline.parts import model, params

TEXTS = ["a red apple", "", "cat", "a green car on a blue road", "dog", "x", "3d rocket", "heart"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return build_text_encoder(model())


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_text_encodes_to_the_same_bits_in_any_batch(encoder: TextEncoder, position: int) -> None:
    alone = encoder.encode([TEXTS[0]])[0]
    batch = [*TEXTS[1 : position + 1], TEXTS[0], *TEXTS[position + 1 :]][:8]
    batched = encoder.encode(batch)[batch.index(TEXTS[0])]
    assert torch.equal(alone.states, batched.states)
    assert torch.equal(alone.mask, batched.mask)


def test_the_encoder_reports_tokens_and_truncation(encoder: TextEncoder) -> None:
    long = encoder.encode(["apple " * 100])[0]
    assert (long.report.num_tokens, long.report.truncated) == (100, True)
    assert bool(long.mask.all())
    empty = encoder.encode([""])[0]
    assert int(empty.mask.sum()) == 3  # pooled vector, start, end
    assert empty.cost.flops > 0


def test_too_many_texts_at_once_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="at most 8"):
        encoder.encode(["a"] * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_latent_decodes_to_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    decoder = build_decoder(model(), dtype=dtype)
    latents = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    together = decoder.decode(latents)
    for latent, image in zip(latents, together, strict=True):
        (alone,) = decoder.decode([latent])
        assert not isinstance(image, InvalidImage) and not isinstance(alone, InvalidImage)
        pixels, cost = image
        assert np.array_equal(alone[0], pixels)
        assert pixels.shape == (64, 64, 3)
        assert cost.flops > 0


def test_noise_depends_on_seed_image_and_tick_only() -> None:
    first = noise.draw(7, 0, 0, (4, 8, 8))
    assert torch.equal(first, noise.draw(7, 0, 0, (4, 8, 8)))
    for other in ((8, 0, 0), (7, 1, 0), (7, 0, 1)):
        assert not torch.equal(first, noise.draw(*other, (4, 8, 8)))
    many = torch.stack([noise.draw(s, i, k, (64,)) for s in range(10) for i in range(10) for k in range(10)])
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", ["a red apple", "ein Käse, 日本の林檎"])
def test_files_carry_their_parameters_and_nothing_else(format: str, prompt: str) -> None:
    pixels = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)
    request = params(prompt=prompt, negative_prompt="blurry")
    data = encode_image(pixels, format, 90, request, "tiny")
    assert data == encode_image(pixels, format, 90, request, "tiny")
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == (format.upper(), (64, 48))
    if format == "png":
        assert isinstance(image, PngImageFile)
        assert image.text == {"parameters": parameters_text(request, "tiny")}
        assert np.array_equal(np.asarray(image), pixels)
    else:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == parameters_text(request, "tiny")


def test_parameters_text() -> None:
    assert parameters_text(params(negative_prompt="blurry", width=96), "tiny").splitlines() == [
        "a red apple",
        "Negative prompt: blurry",
        "Steps: 6, Sampler: dpmpp_2m, CFG scale: 4, Seed: 1, Image index: 0, Size: 96x64, Model: tiny",
    ]


def test_lossless_webp_and_unknown_formats() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(encode_image(pixels, "webp", 100, params(), "tiny")))), pixels
    )
    with pytest.raises(ValueError, match="png, webp, jpeg"):
        encode_image(pixels, "gif", 100, params(), "tiny")


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_quality_is_paid_in_bytes(format: str) -> None:
    """A better quality is a larger file nearer to the pixels; PNG is lossless and does not know it."""
    pixels = textured_pixels()
    files = {quality: encode_image(pixels, format, quality, params(), "tiny") for quality in (0, 30, 75, 99)}
    sizes = [len(file) for file in files.values()]
    errors = [np.square(decoded(file) - pixels).mean() for file in files.values()]
    assert sizes == sorted(sizes) and sizes[-1] > 3 * sizes[0]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-1] > 0.0
    assert errors[-1] < 150.0  # of 255 squared: colours have half the resolution
    png = encode_image(pixels, "png", 100, params(), "tiny")
    assert png == encode_image(pixels, "png", 0, params(), "tiny")
    assert np.array_equal(decoded(png), pixels)


def textured_pixels() -> np.ndarray:
    """Waves of every colour and some noise (H, W, 3) uint8, as an image that is no square."""
    y, x = np.mgrid[:48, :80]
    waves = np.stack([np.sin(x / 7.0), np.sin(y / 5.0), np.sin((x + 2 * y) / 9.0)], axis=-1)
    noisy = 127.5 + 100.0 * waves + np.random.default_rng(0).normal(0.0, 12.0, waves.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def decoded(file: bytes) -> np.ndarray:
    """The pixels (H, W, 3) of an image file, as whole numbers that can be negative."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


BUILT_ALONE = {
    "denoiser": "from safelight.pipeline.assembly.engine import build_engine; build_engine(model)",
    "decoder": (
        "import torch; from safelight.pipeline.assembly.decoder import build_decoder;"
        "build_decoder(model).decode([torch.zeros(8, 4, 4)])"
    ),
}


@pytest.mark.parametrize("stage", BUILT_ALONE)
def test_only_a_text_encoder_imports_large_libraries(stage: str) -> None:
    """They and torch's compiler take several times as long to import as torch does."""
    heavy = ("open_clip", "torchvision", "transformers", "timm", "diffusers", "xformers", "torch._dynamo")
    program = (
        "import sys; from safelight.pipeline.catalog.served_models import find_model;"
        f"model = find_model('emoji-128'); {BUILT_ALONE[stage]};"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
