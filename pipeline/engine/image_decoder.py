"""Latents to pixels, with the same bits for an image in any batch.

Shapes: C latent channels, h x w latent pixels, H x W pixels.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from safelight.models.autoencoders.interface import Autoencoder, decode_latents
from safelight.pipeline.flops.vae import decode_flops
from safelight.pipeline.params import StageCost

Pixels = np.ndarray  # (H, W, 3) uint8


class InvalidImage(ArithmeticError):
    """Latents or pixels that are not finite: broken weights, or a network that overflows."""


class ImageDecoder:
    """The autoencoder's decoder. Images that arrive together are decoded one by one at one fixed shape.

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
        if not latent.isfinite().all():  # some decoders make finite pixels of an infinite latent
            return InvalidImage("the denoiser left numbers that are not finite")
        pixels = decode_latents(self._vae, latent[None].to(self._device, self._dtype))[0].float()
        if not pixels.isfinite().all():
            return InvalidImage("the decoder left numbers that are not finite")
        quantized = pixels.clamp(-1.0, 1.0).add(1.0).mul(127.5).round_().to(torch.uint8)
        array = quantized.permute(1, 2, 0).contiguous().cpu().numpy()
        seconds = time.perf_counter() - started
        return array, StageCost(seconds, decode_flops(self._vae.options, *latent.shape[1:]))
