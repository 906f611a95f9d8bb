"""Latents to pixels and pixels to latents, with the same bits for an image in any batch.

Shapes: C latent channels, h x w latent pixels, H x W pixels.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.autoencoders.interface import Autoencoder, decode_latents, encode_pixels
from safelight.models.device_copies import to_device
from safelight.pipeline.engine.device_clock import clock_of
from safelight.pipeline.engine.source_image import SourceImage
from safelight.pipeline.engine.source_latents import SourceLatents
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.vae import decode_flops, encode_flops
from safelight.pipeline.params import StageCost

Pixels = np.ndarray  # (H, W, 3) uint8
PREVIEW_SCALES = (1, 2, 4, 8)  # by which previews may be reduced before they are decoded
MIN_PREVIEW_SIDE = 4  # latent pixels of a reduced preview


class InvalidImage(ArithmeticError):
    """Latents or pixels that are not finite: broken weights, or a network that overflows."""


class ImageDecoder:
    """The autoencoder. Images that arrive together are decoded one by one at one fixed shape.

    A batched convolution gains nothing on a processor, and a fixed shape keeps an image's bits independent of
    its batch-mates.
    """

    max_batch = 8

    def __init__(self, vae: Autoencoder, dtype: torch.dtype, device: torch.device):
        self._vae = vae
        self._device = device
        self._dtype = dtype

    def decode(self, latents: Sequence[Tensor]) -> list[tuple[Pixels, StageCost] | InvalidImage]:
        """Decode latents (C, h, w), each to pixels (H, W, 3) uint8 and their cost.

        An image that cannot be decoded is returned as an error, so that the others are not lost.
        """
        return [self._decode_one(latent) for latent in latents]

    @torch.inference_mode()
    def _decode_one(self, latent: Tensor) -> tuple[Pixels, StageCost] | InvalidImage:
        started = time.perf_counter()
        pixels = self._pixels(latent)
        if isinstance(pixels, InvalidImage):
            return pixels
        array = self._on_host(pixels)
        if isinstance(array, InvalidImage):
            return array
        seconds = time.perf_counter() - started
        return array, StageCost(seconds, decode_flops(self._vae.options, *latent.shape[1:]))

    def preview_flops(self, latent: Tensor) -> dict[int, int]:
        """The operations of decoding a latent (C, h, w) by each scale that it may be reduced by."""
        sizes = {scale: _reduced_size(latent, scale) for scale in PREVIEW_SCALES}
        return {
            scale: decode_flops(self._vae.options, *size)
            for scale, size in sizes.items()
            if scale == 1 or min(size) >= MIN_PREVIEW_SIDE
        }

    @torch.inference_mode()
    def decode_preview(self, latent: Tensor, scale: int = 1) -> tuple[Pixels, StageCost] | InvalidImage:
        """Decode a latent (C, h, w) to the pixels that `decode` gives, in detail reduced by `scale`.

        The latent is averaged over squares of `scale` x `scale`, and its pixels are enlarged.
        """
        started = time.perf_counter()
        size = _reduced_size(latent, scale)
        pixels = self._pixels(F.adaptive_avg_pool2d(latent, size) if scale > 1 else latent)
        if isinstance(pixels, InvalidImage):
            return pixels
        if scale > 1:
            enlargement = pixels.shape[1] // size[0]
            full_size = [enlargement * side for side in latent.shape[1:]]
            pixels = F.interpolate(pixels[None], full_size, mode="bicubic")[0]
        array = self._on_host(pixels)
        if isinstance(array, InvalidImage):
            return array
        return array, StageCost(time.perf_counter() - started, decode_flops(self._vae.options, *size))

    def _pixels(self, latent: Tensor) -> Tensor | InvalidImage:
        """The pixels (3, H, W) float32 of a finite latent, in about [-1, 1], on the device."""
        if not latent.isfinite().all():  # some decoders make finite pixels of an infinite latent
            return InvalidImage("the denoiser left numbers that are not finite")
        latents = to_device(latent[None], self._device, self._dtype)
        return decode_latents(self._vae, latents)[0].float()

    def _on_host(self, pixels: Tensor) -> Pixels | InvalidImage:
        """Pixels (3, H, W) in about [-1, 1] as (H, W, 3) uint8. The host waits for the device once."""
        is_finite = pixels.isfinite().all().to("cpu", non_blocking=True)
        quantized = _quantize(pixels).to("cpu", non_blocking=True)
        clock_of(self._device).mark().wait()
        if not is_finite:
            return InvalidImage("the decoder left numbers that are not finite")
        return quantized.numpy()

    @torch.inference_mode()
    def encode(self, source: SourceImage) -> tuple[SourceLatents, StageCost]:
        """The latents of an edit's source, and their cost.

        They are the mode of the posterior, so that the same pixels always give the same latents. A latent
        pixel is redrawn if any of its pixels is.

        Raises:
            InvalidImage: The encoder left numbers that are not finite.
            InvalidParams: The model cannot edit.
        """
        started = time.perf_counter()
        _check_scales(self._vae)
        pixels = to_device(torch.from_numpy(source.pixels), self._device)
        shares = pixels.permute(2, 0, 1)[None].float() / 255.0
        latents = encode_pixels(self._vae, (2.0 * shares - 1.0).to(self._dtype))[0].float().cpu()
        if not latents.isfinite().all():
            raise InvalidImage("the encoder left numbers that are not finite")
        redraw = None if source.redraw is None else _latent_mask(source.redraw, latents.shape[1:])
        seconds = time.perf_counter() - started
        cost = StageCost(seconds, encode_flops(self._vae.options, *source.pixels.shape[:2]))
        return SourceLatents(latents, redraw), cost


def _quantize(pixels: Tensor) -> Tensor:
    """Pixels (3, H, W) in about [-1, 1] as (H, W, 3) uint8."""
    quantized = pixels.clamp(-1.0, 1.0).add(1.0).mul(127.5).round_().to(torch.uint8)
    return quantized.permute(1, 2, 0).contiguous()


def _reduced_size(latent: Tensor, scale: int) -> tuple[int, int]:
    """(h, w) of a latent (C, h, w) reduced by `scale`."""
    height, width = latent.shape[1:]
    return -(-height // scale), -(-width // scale)


def _latent_mask(redraw: Pixels, shape: torch.Size) -> Tensor:
    """Which latent pixels (h, w) hold a pixel that `redraw` (H, W) lets be redrawn."""
    weights = torch.from_numpy(redraw)[None].float()
    return F.adaptive_max_pool2d(weights, tuple(shape))[0] > 0.0


def _check_scales(vae: Autoencoder) -> None:
    """Raise `InvalidParams` if decoded images have another size than encoded ones."""
    shrinking, enlarging = vae.options.encoder_scale, vae.options.decoder_scale
    if shrinking != enlarging:
        raise InvalidParams(
            "image",
            f"image cannot be edited by this model: its autoencoder shrinks {shrinking} times, "
            f"and enlarges {enlarging} times",
        )
