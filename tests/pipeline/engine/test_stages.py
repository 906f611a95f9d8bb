"""Encoder, decoder, noise and flops of the pipeline."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.diffusion import noise
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.text_encoder import TextEncoder
from tests.pipeline.parts import model

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
