"""From the decoder's numbers to levels of 255, and what is refused."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.loading import load_vae
from safelight.models.autoencoders.options import TinyOptions
from safelight.models.find_checkpoint import find_folder
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.flops.vae import decode_flops


class Passthrough(Autoencoder):
    """An autoencoder whose pixels are its latents, so that a test can choose them."""

    def __init__(self) -> None:
        super().__init__()
        self.options = TinyOptions(scaling_factor=0.5)

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(Passthrough(), torch.float32, torch.device("cpu"))


def levels(decoder: ImageDecoder, pixels: Tensor) -> list[list[list[int]]]:
    """The levels (H, W, 3) of pixels (3, H, W)."""
    [result] = decoder.decode([0.5 * pixels])
    assert not isinstance(result, InvalidImage)
    return cast(list[list[list[int]]], result[0].tolist())


def test_minus_one_to_one_become_0_to_255_at_the_nearest_level(decoder: ImageDecoder) -> None:
    row = torch.tensor([-1.0, -1.0 + 0.49 / 127.5, -1.0 + 0.51 / 127.5, 0.001, 1.0 - 0.51 / 127.5, 1.0])
    assert levels(decoder, row.expand(3, 1, 6)) == [[[level] * 3 for level in (0, 0, 1, 128, 254, 255)]]


def test_what_exceeds_the_range_is_clamped(decoder: ImageDecoder) -> None:
    row = torch.tensor([-1.7, -1.01, 1.01, 300.0])
    assert levels(decoder, row.expand(3, 1, 4)) == [[[level] * 3 for level in (0, 0, 255, 255)]]


def test_red_green_blue_rows_and_columns_keep_their_places(decoder: ImageDecoder) -> None:
    expected = torch.arange(2 * 3 * 3).reshape(2, 3, 3)  # H, W, channels
    assert levels(decoder, expected.permute(2, 0, 1) / 127.5 - 1.0) == expected.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_the_stage_that_left_them(value: float) -> None:
    """The embedded decoder makes finite pixels of an infinite latent, and a clamp of infinite pixels."""
    vae: Any = load_vae(find_folder("emoji-128") / "vae", "cpu", torch.float32)
    decoder = ImageDecoder(vae, torch.float32, torch.device("cpu"))
    good = torch.zeros(8, 2, 3)
    bad = good.clone()
    bad[3, 1, 2] = value
    first, refused, last = decoder.decode([good, bad, good])
    assert str(refused) == "the denoiser left numbers that are not finite"
    assert not isinstance(first, InvalidImage) and not isinstance(last, InvalidImage)
    vae.decoder.layers[-1].bias.data[1] = value
    [refused] = decoder.decode([good])
    assert isinstance(refused, InvalidImage)
    assert str(refused) == "the decoder left numbers that are not finite"


def test_a_preview_in_full_is_the_image(decoder: ImageDecoder) -> None:
    latent = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    [image], preview = decoder.decode([latent]), decoder.decode_preview(latent)
    assert not isinstance(image, InvalidImage) and not isinstance(preview, InvalidImage)
    assert np.array_equal(preview[0], image[0])
    assert preview[1].flops == image[1].flops


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (6, 10)])
@pytest.mark.parametrize("scale", [2, 4])
def test_a_reduced_preview_is_the_decoded_average_in_the_images_size(
    height: int, width: int, scale: int
) -> None:
    vae: Any = load_vae(find_folder("emoji-128") / "vae", "cpu", torch.float32)
    real = ImageDecoder(vae, torch.float32, torch.device("cpu"))
    latent = torch.randn(8, height, width, generator=torch.Generator().manual_seed(0))
    preview = real.decode_preview(latent, scale)
    assert not isinstance(preview, InvalidImage)
    pixels, cost = preview
    assert pixels.shape == (8 * height, 8 * width, 3)
    small_size = (math.ceil(height / scale), math.ceil(width / scale))
    [small] = real.decode([functional.adaptive_avg_pool2d(latent, small_size)])
    assert not isinstance(small, InvalidImage)
    assert cost.flops == small[1].flops
    enlarged = Image.fromarray(small[0]).resize((8 * width, 8 * height), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(enlarged).astype(float) - pixels).mean() < 6.0  # another bicubic kernel


def test_a_preview_may_be_reduced_while_enough_of_it_is_left(decoder: ImageDecoder) -> None:
    options = TinyOptions(scaling_factor=0.5)
    whole = decode_flops(options, 32, 48)
    assert decoder.preview_flops(torch.zeros(3, 32, 48)) == {k: whole // k**2 for k in (1, 2, 4, 8)}
    assert [*decoder.preview_flops(torch.zeros(3, 16, 48))] == [1, 2, 4]
    assert [*decoder.preview_flops(torch.zeros(3, 3, 3))] == [1]


def test_a_preview_that_is_not_finite_is_refused(decoder: ImageDecoder) -> None:
    latent = torch.full((3, 4, 4), float("nan"))
    for scale in (1, 2):
        assert isinstance(decoder.decode_preview(latent, scale), InvalidImage)
