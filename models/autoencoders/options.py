"""The options of the autoencoders, read from and written to diffusers' `config.json`.

No torch is imported here, so that FLOP formulas and the capacity model can read an autoencoder's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.options import MAX_DEPTH, Depth, Positive, checked, refuse_unknown

MAX_CHANNELS = 2**16  # networks are built before they are compared with the files, so this is bounded
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
UPSAMPLING = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
# The only classes of blocks that are supported, one block for each entry of block_out_channels.
KL_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Statistics by channel, in place of one scaling factor.
UNSUPPORTED = ("latents_mean", "latents_std")
# They change nothing here: tiles, the dtype that diffusers' pipelines choose.
KL_IGNORED = {"sample_size", "force_upcast"}
# The decoder's channels once more, latents stored as bytes, the dtype as above.
TINY_IGNORED = {"block_out_channels", "latent_magnitude", "latent_shift", "force_upcast"}


@dataclass(frozen=True, slots=True)
class KLOptions:
    """The options of diffusers' `AutoencoderKL`, by its names and with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: Depth = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: Positive = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> KLOptions:
        """Read the `config.json` of an `AutoencoderKL`.

        Raises `CheckpointError` for an option that is not supported.
        """
        refuse_unknown(config, _names(cls) | KL_IGNORED | KL_BLOCKS.keys(), UNSUPPORTED)
        options = checked(cls, config)
        _check_common(options)
        _check_channels(options, "block_out_channels")
        for channels in options.block_out_channels:
            if channels % options.norm_num_groups:
                raise CheckpointError(
                    f"block_out_channels holds {channels}, which norm_num_groups {options.norm_num_groups} "
                    "does not divide"
                )
        for name, block in KL_BLOCKS.items():
            expected = [block] * len(options.block_out_channels)
            if (blocks := config.get(name, [block])) != expected:
                raise CheckpointError(f"{name} is {blocks!r}, only {expected!r} is supported")
        return options


@dataclass(frozen=True, slots=True)
class TinyOptions:
    """The options of diffusers' `AutoencoderTiny`, by its names and with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: Positive = 1.0
    shift_factor: float | None = 0.0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> TinyOptions:
        """Read the `config.json` of an `AutoencoderTiny`.

        Raises `CheckpointError` for an option that is not supported.
        """
        refuse_unknown(config, _names(cls) | TINY_IGNORED, UNSUPPORTED)
        options = checked(cls, config)
        _check_common(options)
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            _check_channels(options, name)
        _check_word("upsample_fn", options.upsample_fn, UPSAMPLING)
        _check_scales("encoder", options.encoder_block_out_channels, options.num_encoder_blocks)
        _check_scales("decoder", options.decoder_block_out_channels, options.num_decoder_blocks)
        return options

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` from which diffusers builds the same network."""
        return {
            "_class_name": "AutoencoderTiny",
            **asdict(self),
            "block_out_channels": self.decoder_block_out_channels,  # diffusers writes it and does not read it
        }


Options: TypeAlias = KLOptions | TinyOptions
CLASSES: Mapping[str, type[KLOptions] | type[TinyOptions]] = {
    "AutoencoderKL": KLOptions,
    "AutoencoderTiny": TinyOptions,
}


def read_options(config: Mapping[str, Any]) -> Options:
    """The options in an autoencoder's `config.json`.

    Raises `CheckpointError` for a class or an option that is not supported and for a value of the wrong type.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise CheckpointError(f"class {name!r} is not supported; supported: {', '.join(CLASSES)}")
    return CLASSES[name].from_diffusers(config)


def _names(options: type[KLOptions] | type[TinyOptions]) -> set[str]:
    return {field.name for field in fields(options)}


def _check_common(options: Options) -> None:
    _check_word("act_fn", options.act_fn.lower(), ACTIVATIONS)
    for name in ("in_channels", "out_channels", "latent_channels"):
        _check_channels(options, name)


def _check_word(name: str, word: str, supported: tuple[str, ...]) -> None:
    if word not in supported:
        raise CheckpointError(f"{name} is {word!r}, only {', '.join(supported)} are supported")


def _check_channels(options: Options, name: str) -> None:
    value = getattr(options, name)
    channels = value if isinstance(value, tuple) else (value,)
    if not channels or not 1 <= min(channels) <= max(channels) <= MAX_CHANNELS:
        raise CheckpointError(f"{name} is {value!r}, expected channels from 1 to {MAX_CHANNELS}")


def _check_scales(part: str, channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """Check the channels and the numbers of blocks at each scale of the encoder or the decoder."""
    if len(set(channels)) > 1:
        raise CheckpointError(
            f"{part}_block_out_channels is {list(channels)}, only the same number at every scale is supported"
        )
    if len(channels) != len(blocks) or not 0 <= min(blocks) <= max(blocks) <= MAX_DEPTH:
        raise CheckpointError(
            f"num_{part}_blocks is {list(blocks)}, expected {len(channels)} numbers from 0 to {MAX_DEPTH}"
        )
