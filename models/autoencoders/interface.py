"""What every autoencoder can do, and latents between its own scale and the denoiser's.

Shapes: B images, C latent channels, h x w latent pixels, H x W = 8h x 8w pixels.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from safelight.models.autoencoders.options import Options


class Autoencoder(nn.Module, ABC):
    """An encoder and a decoder of images, with latents on its own scale."""

    options: Options

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w).

        A posterior over latents is replaced by its mode.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pixels (B, 3, H, W) in about [-1, 1]."""


def decode_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the denoiser leaves them to pixels (B, 3, H, W) in about [-1, 1].

    They are not clamped, so that an overflow can still be seen.
    """
    return vae.decode(latents / vae.options.scaling_factor + (vae.options.shift_factor or 0.0))


def encode_pixels(vae: Autoencoder, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) on the denoiser's scale."""
    return (vae.encode(pixels) - (vae.options.shift_factor or 0.0)) * vae.options.scaling_factor
