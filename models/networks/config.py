"""The configurations of the denoising networks, read from and written to diffusers' `config.json`.

No torch is imported here, so that the gateway and the capacity model can read a network's numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.options import Depth, Positive, checked, refuse_unknown, require

TIME_FREQUENCIES = 256  # channels of the sinusoidal features of a time, in every family

# The options of diffusers' PixArtTransformer2DModel that are read here or change nothing at inference.
DIT_OPTIONS = {
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers",
    "cross_attention_dim", "sample_size", "patch_size", "caption_channels", "interpolation_scale", "norm_eps",
    "norm_type", "activation_fn", "norm_elementwise_affine", "attention_bias", "attention_type",
    "use_additional_conditions", "dropout", "norm_num_groups", "num_embeds_ada_norm",
}  # fmt: skip
DIT_DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
    "num_layers": 28, "sample_size": 128, "patch_size": 2,
}  # fmt: skip
# Options that are supported with one value only, diffusers' default.
DIT_FIXED = {
    "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "norm_elementwise_affine": False,
    "attention_bias": True, "attention_type": "default",
}  # fmt: skip
CLASS_DIT_FIXED = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "norm_elementwise_affine": False,
    "attention_bias": True, "upcast_attention": False,
    "attention_type": "default",  # stands in old folders only
}  # fmt: skip
# Options of diffusers' Transformer2DModel, in old folders, that change what a network computes.
OLD_UNSUPPORTED = (
    "num_vector_embeds", "use_linear_projection", "only_cross_attention", "double_self_attention",
    "upcast_attention", "interpolation_scale", "use_additional_conditions", "caption_channels",
    "cross_attention_dim",
)  # fmt: skip
CLASS_DIT_IGNORED = {"dropout", "norm_num_groups"}  # they change nothing at inference


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """The PixArt family of diffusion transformers (Chen et al. 2023, arXiv:2310.00426)."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    num_layers: Depth
    sample_size: int  # latent pixels on a side, at the resolution that the checkpoint was trained for
    patch_size: int
    caption_channels: int
    interpolation_scale: Positive
    norm_eps: Positive = 1e-6
    # Whether the network reads the image's resolution and aspect ratio, as PixArt-alpha at 1024 does.
    is_sized: bool = False

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> DiTConfig:
        """Read the `config.json` of a `PixArtTransformer2DModel`.

        Raises `CheckpointError` for an option that is not supported.
        """
        refuse_unknown(config, DIT_OPTIONS, OLD_UNSUPPORTED)
        require(config, DIT_FIXED)
        options = DIT_DEFAULTS | {
            key: value for key, value in config.items() if value is not None or key == "out_channels"
        }
        if "caption_channels" not in options:
            raise CheckpointError(
                "caption_channels is missing, only models with a caption projection are supported"
            )
        if options["out_channels"] is None:
            options["out_channels"] = options["in_channels"]
        sample_size = options["sample_size"]
        options.setdefault(
            "interpolation_scale", max(sample_size // 64, 1) if isinstance(sample_size, int) else None
        )
        is_sized = options.get("use_additional_conditions", sample_size == 128)
        if type(is_sized) is not bool:
            raise CheckpointError(f"use_additional_conditions is {is_sized!r}, expected true or false")
        result = checked(cls, options | {"is_sized": is_sized})
        require(config, {"cross_attention_dim": result.width})
        return result

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` from which diffusers builds the same network."""
        return {
            "_class_name": "PixArtTransformer2DModel",
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": self.attention_head_dim,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.num_layers,
            "cross_attention_dim": self.width,
            "sample_size": self.sample_size,
            "patch_size": self.patch_size,
            "caption_channels": self.caption_channels,
            "interpolation_scale": self.interpolation_scale,
            "norm_eps": self.norm_eps,
            "norm_type": "ada_norm_single",
            "activation_fn": "gelu-approximate",
            "norm_elementwise_affine": False,
            "attention_bias": True,
            "use_additional_conditions": self.is_sized,
        }


@dataclass(frozen=True, slots=True)
class MMDiTConfig:
    """The options of diffusers' `SD3Transformer2DModel`, by its names and with its defaults."""

    sample_size: int = 128  # latent pixels on a side; with patch_size, the scale of the positions
    patch_size: int = 2
    in_channels: int = 16
    num_layers: Depth = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096  # channels of the text states
    caption_projection_dim: int = 1152  # channels of the text tokens: the width
    pooled_projection_dim: int = 2048  # channels of the pooled text
    out_channels: int = 16
    pos_embed_max_size: int = 96  # patches on a side of the position table
    # Blocks whose image tokens also attend to themselves alone, as in 3.5-medium.
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None  # "rms_norm" in 3.5

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def is_sized(self) -> bool:
        """Whether the network reads the size of the image."""
        return False

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> MMDiTConfig:
        """Read the `config.json` of an `SD3Transformer2DModel`.

        Raises `CheckpointError` for an option that is not supported.
        """
        names = {field.name for field in fields(cls)}
        refuse_unknown(config, names)
        options = {key: value for key, value in config.items() if key in names}
        if options.get("out_channels", 16) is None:
            options["out_channels"] = options.get("in_channels", 16)
        if not options.get("pos_embed_max_size", True):
            raise CheckpointError(
                "pos_embed_max_size is missing, only models with a stored position table are supported"
            )
        result = checked(cls, options)
        if result.qk_norm not in (None, "rms_norm"):
            raise CheckpointError(f"qk_norm is {result.qk_norm!r}, only None and 'rms_norm' are supported")
        if result.caption_projection_dim != result.width:
            raise CheckpointError(
                f"caption_projection_dim is {result.caption_projection_dim}, "
                f"only the width, {result.width}, is supported"
            )
        return result

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` from which diffusers builds the same network."""
        return {"_class_name": "SD3Transformer2DModel", **asdict(self)}


@dataclass(frozen=True, slots=True)
class ClassDiTConfig:
    """The options of diffusers' `DiTTransformer2DModel`, by its names and with its defaults."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 4  # twice `in_channels` where the variance is learned
    num_layers: Depth = 28
    sample_size: int = 32  # latent pixels on a side; with patch_size, the scale of the positions
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000  # classes; the index after the last is the null class
    norm_eps: Positive = 1e-5  # of the norm before the MLP

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def is_sized(self) -> bool:
        """Whether the network reads the size of the image."""
        return False

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> ClassDiTConfig:
        """Read the `config.json` of a `DiTTransformer2DModel`.

        Raises `CheckpointError` for an option that is not supported.
        """
        names = {field.name for field in fields(cls)}
        refuse_unknown(config, names | CLASS_DIT_FIXED.keys() | CLASS_DIT_IGNORED, OLD_UNSUPPORTED)
        require(config, CLASS_DIT_FIXED)
        options = {key: value for key, value in config.items() if key in names}
        if options.get("out_channels") is None:
            options["out_channels"] = options.get("in_channels", 4)
        if not options.get("num_embeds_ada_norm", True):
            raise CheckpointError("num_embeds_ada_norm is missing, only models with classes are supported")
        return checked(cls, options)

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` from which diffusers builds the same network."""
        return {"_class_name": "DiTTransformer2DModel", **asdict(self)}
