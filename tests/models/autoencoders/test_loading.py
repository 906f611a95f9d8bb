"""Loaded autoencoders against diffusers', with the scale and the shift of their configurations."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from safelight.models.autoencoders.interface import decode_latents, encode_pixels
from safelight.models.autoencoders.loading import load_vae
from safelight.models.find_checkpoint import find_folder
from tests.models.folders import make_vae

SHAPE = (1, 3, 40, 64)


def write_kl(folder: Path, **options: float | None) -> AutoencoderKL:
    vae = make_vae(4, **options).eval()
    vae.save_pretrained(folder)
    return vae


def pixels() -> Tensor:
    """Pixels in [-1, 1] as diffusers makes them of a file."""
    levels = torch.randint(0, 256, (40, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled: Tensor = VaeImageProcessor().preprocess(Image.fromarray(levels.numpy()))
    return scaled


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.13025, None), (1.5305, 0.0609)], ids=["scaled", "scaled and shifted"]
)
@torch.inference_mode()
def test_encoding_and_decoding_are_those_of_a_kl_autoencoder(
    tmp_path: Path, scale: float, shift: float | None
) -> None:
    theirs = write_kl(tmp_path, scaling_factor=scale, shift_factor=shift)
    ours = load_vae(tmp_path, "cpu", torch.float32)
    mode = theirs.encode(pixels()).latent_dist.mode()
    assert float(mode.std()) > 0.05
    latents = encode_pixels(ours, pixels())
    torch.testing.assert_close(latents, (mode - (shift or 0.0)) * scale)
    torch.testing.assert_close(decode_latents(ours, latents), theirs(pixels(), sample_posterior=False).sample)
    assert not torch.allclose(mode, latents, atol=0.1 * float(mode.std()))


@torch.inference_mode()
def test_encoding_and_decoding_are_those_of_the_embedded_autoencoder() -> None:
    folder = find_folder("emoji-128") / "vae"
    ours, theirs = load_vae(folder, "cpu", torch.float32), AutoencoderTiny.from_pretrained(folder)
    encoded = theirs.encode(pixels()).latents
    latents = encode_pixels(ours, pixels())
    assert theirs.config.scaling_factor != 1.0
    torch.testing.assert_close(latents, encoded * theirs.config.scaling_factor)
    torch.testing.assert_close(decode_latents(ours, latents), theirs.decode(encoded).sample)
