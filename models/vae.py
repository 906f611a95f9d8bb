"""The autoencoder of a checkpoint: diffusers' own classes, loaded strictly, to decode and to encode.

Shapes: B images, C latent channels, h x w latent pixels, H x W = 8h x 8w pixels.
"""

from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import (
    Depth,
    Positive,
    checked,
    find_unknown,
    read_known,
    refuse_unknown,
)
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import WEIGHTS, load_into
from safelight.models.cuda_runtime import preload_cuda_runtime

preload_cuda_runtime()  # must run first: diffusers imports xformers when it is imported
# Other modules import `AutoencoderTiny` from here, so that this order holds for them too.
from diffusers import AutoencoderKL  # noqa: E402
from diffusers import AutoencoderTiny as AutoencoderTiny  # noqa: E402

CLASSES: dict[str, type[nn.Module]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
UNSUPPORTED = ("latents_mean", "latents_std")  # statistics by channel, in place of one scaling factor


@dataclass(frozen=True, slots=True)
class VaeOptions:
    """The options of both classes that are read here, or that diffusers does not check."""

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


def build_empty(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> nn.Module:
    """The autoencoder in `folder` without its weights, on the meta device.

    Raises `CheckpointError` for a class or an option that is not supported and for a value of the wrong type.
    """
    path = folder / "config.json"
    config = read_json(path)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise CheckpointError(f"{path}: class {name!r} is not supported; supported: {', '.join(CLASSES)}")
    vae_class = CLASSES[name]
    read_known(partial(_check_options, vae_class), config, path, options)
    names = signature(vae_class).parameters
    return _build(vae_class, {key: value for key, value in config.items() if key in names}, path)


def unknown_options(folder: Path) -> tuple[str, ...]:
    """The options of the autoencoder in `folder` that are not known."""
    config = read_json(folder / "config.json")
    vae_class = CLASSES.get(str(config.get("_class_name")))
    return find_unknown(partial(_check_options, vae_class), config) if vae_class else ()


def _check_options(vae_class: type[nn.Module], config: dict[str, Any]) -> None:
    # AutoencoderTiny writes block_out_channels and does not read it.
    supported = {*signature(vae_class).parameters, "block_out_channels"} - {*UNSUPPORTED}
    refuse_unknown(config, supported, UNSUPPORTED)
    checked(VaeOptions, config)


def _build(vae_class: type[nn.Module], options: dict[str, Any], path: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            return vae_class(**options)
    except Exception as error:  # diffusers does not check its options, so any type may be raised
        raise CheckpointError(
            f"{path} does not describe an {vae_class.__name__}: {type(error).__name__}: {error}"
        ) from None


def load_vae(
    folder: Path, device: str, dtype: torch.dtype, options: ReadOptions = DEFAULT_READ_OPTIONS
) -> nn.Module:
    """The autoencoder in `folder`, with its weights on `device` in `dtype`.

    Raises `CheckpointError` as `build_empty` does, and unless the files hold exactly its tensors.
    """
    return load_into(build_empty(folder, options), folder, device, dtype, WEIGHTS, options)


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the denoiser leaves them to pixels (B, 3, H, W) in about [-1, 1].

    They are not clamped, so that an overflow can still be seen.
    """
    autoencoder: Any = vae  # diffusers' classes have no types
    shift = getattr(autoencoder.config, "shift_factor", None) or 0.0
    pixels: Tensor = autoencoder.decode(latents / autoencoder.config.scaling_factor + shift).sample
    return pixels


def encode_pixels(vae: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) on the denoiser's scale.

    A posterior over latents is replaced by its mode.
    """
    autoencoder: Any = vae
    shift = getattr(autoencoder.config, "shift_factor", None) or 0.0
    encoded = autoencoder.encode(pixels)
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    scaled: Tensor = (latents - shift) * autoencoder.config.scaling_factor
    return scaled
