"""The latents that an edit starts from, and their noised form at any time.

Shapes: C latent channels, H x W latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.models.device_copies import to_device
from safelight.pipeline.diffusion import noise
from safelight.pipeline.params import GenerationParams


@dataclass(frozen=True, slots=True)
class SourceLatents:
    """The source of an edit, on the CPU."""

    latents: Tensor  # (C, H, W) float32, on the denoiser's scale
    redraw: Tensor | None = None  # (H, W): True where a mask lets the image be redrawn; None: everywhere

    def noised(self, params: GenerationParams, device: torch.device) -> NoisedSource:
        """The source on `device`, with the noise from which `params` starts."""
        z = noise.draw(params.seed, params.image_index, noise.START, tuple(self.latents.shape))
        redraw = None if self.redraw is None else to_device(self.redraw, device)
        return NoisedSource(to_device(self.latents, device), to_device(z, device), redraw)


@dataclass(frozen=True, slots=True)
class NoisedSource:
    """A source and the one noise that is added to it, on the sample's device."""

    latents: Tensor  # (C, H, W)
    noise: Tensor  # (C, H, W)
    redraw: Tensor | None  # (H, W)

    def at(self, level: tuple[float, float]) -> Tensor:
        """alpha x0 + sigma z at the `level` (alpha, sigma)."""
        alpha, sigma = level
        return alpha * self.latents + sigma * self.noise

    def restore(self, x: Tensor, level: tuple[float, float]) -> Tensor:
        """`x` (C, H, W) with the source, noised to `level`, outside the mask."""
        return x if self.redraw is None else torch.where(self.redraw, x, self.at(level))
