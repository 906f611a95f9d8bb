"""The autoencoder of a checkpoint, in diffusers' own classes; here it is only loaded, strictly, and used both ways.

Shapes: B pictures, C latent channels, h x w latent pixels, H x W = 8h x 8w pixels.
"""

from inspect import signature
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from models.checkpoint import load_into
from models.folder import CheckpointError, read_json

CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def build_empty(folder: Path) -> nn.Module:
    """The autoencoder in `folder` without its weights, on the meta device; raise `CheckpointError` for another class."""
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise CheckpointError(f"{folder / 'config.json'}: class {name!r} is not supported; supported: {', '.join(CLASSES)}")
    with torch.device("meta"):
        vae: nn.Module = CLASSES[name](**{key: value for key, value in config.items() if key in signature(CLASSES[name]).parameters})
        return vae


def load_vae(folder: Path, device: str, dtype: torch.dtype) -> nn.Module:
    """The autoencoder in `folder` (`config.json` and safetensors); raise `CheckpointError` naming what is wrong."""
    return load_into(build_empty(folder), folder, device, dtype)


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the denoiser leaves them to pixels (B, 3, H, W) in [-1, 1]."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pixels: Tensor = vae.decode(latents / vae.config.scaling_factor + shift).sample
    return pixels.clamp(-1.0, 1.0)


def encode_pixels(vae: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) on the denoiser's scale; of a posterior, its mode."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    encoded = vae.encode(pixels)
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return (latents - shift) * vae.config.scaling_factor
