"""The autoencoder of a checkpoint, in diffusers' own classes; here it is only loaded, strictly, and used both ways.

Shapes: B images, C latent channels, h x w latent pixels, H x W = 8h x 8w pixels.
"""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import Depth, Positive, checked, refuse_unknown
from safelight.models.checkpoints.tensors import load_into
from safelight.models.cuda_runtime import preload_cuda_runtime

preload_cuda_runtime()  # work at import, for once: diffusers imports xformers when it is imported itself
from diffusers import AutoencoderKL as AutoencoderKL  # noqa: E402
from diffusers import AutoencoderTiny as AutoencoderTiny  # noqa: E402

CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
UNREAD = ("latents_mean", "latents_std")  # statistics by channel, in place of one scaling factor


@dataclass(frozen=True, slots=True)
class VaeOptions:
    """The options of both classes that are read here or could make diffusers fail late; the rest is diffusers' own."""

    scaling_factor: Positive = 1.0
    shift_factor: float | None = None
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    layers_per_block: Depth = 1
    norm_num_groups: int = 32
    block_out_channels: tuple[int, ...] = ()
    encoder_block_out_channels: tuple[int, ...] = ()
    decoder_block_out_channels: tuple[int, ...] = ()
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    act_fn: str = "silu"


def build_empty(folder: Path) -> nn.Module:
    """The autoencoder in `folder` without its weights, on the meta device.

    Raises `CheckpointError` for another class, an option that is not built and a value that is none.
    """
    path = folder / "config.json"
    config = read_json(path)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise CheckpointError(f"{path}: class {name!r} is not supported; supported: {', '.join(CLASSES)}")
    kind = CLASSES[name]
    options = signature(kind).parameters
    try:
        refuse_unknown(
            config, {*options, "block_out_channels"} - {*UNREAD}
        )  # which AutoencoderTiny writes, and does not read
        checked(VaeOptions, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return _build(kind, {key: value for key, value in config.items() if key in options}, path)


def _build(kind: type[nn.Module], options: dict[str, Any], path: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            vae = kind(**options)
    except Exception as error:  # diffusers does not check its options, it stumbles over them
        raise CheckpointError(
            f"{path} does not describe an {kind.__name__}: {type(error).__name__}: {error}"
        ) from None
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
