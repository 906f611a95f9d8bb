"""Architecture numbers as frozen dataclasses, read from and written to diffusers' `config.json`. No torch here."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.folder import CheckpointError

# what diffusers' PixArtTransformer2DModel is told that is read here, or means nothing to it
KNOWN = {
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "cross_attention_dim", "sample_size",
    "patch_size", "caption_channels", "interpolation_scale", "norm_eps", "norm_type", "activation_fn", "norm_elementwise_affine",
    "attention_bias", "attention_type", "use_additional_conditions", "dropout", "norm_num_groups", "num_embeds_ada_norm",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """The PixArt family of diffusion transformers (Chen et al. 2023, arXiv:2310.00426)."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    num_layers: int
    sample_size: int  # latent pixels on a side, at the resolution that the checkpoint was trained for
    patch_size: int
    caption_channels: int
    interpolation_scale: float
    norm_eps: float = 1e-6
    is_sized: bool = False  # told the picture's resolution and aspect ratio, as PixArt-alpha at 1024 is

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> "DiTConfig":
        """Read the `config.json` of a `PixArtTransformer2DModel`; raise `CheckpointError` for what is not built."""
        refuse_unknown(config, KNOWN)
        _require(config, "norm_type", "ada_norm_single")
        _require(config, "activation_fn", "gelu-approximate")
        _require(config, "norm_elementwise_affine", False)
        _require(config, "attention_bias", True)
        _require(config, "attention_type", "default")
        sample_size = config.get("sample_size", 128)
        additional = config.get("use_additional_conditions")
        scale = config.get("interpolation_scale")
        in_channels, out_channels = config.get("in_channels", 4), config.get("out_channels", 8)
        heads, head_dim = config.get("num_attention_heads", 16), config.get("attention_head_dim", 72)
        _require(config, "cross_attention_dim", heads * head_dim)
        return cls(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=in_channels,
            out_channels=in_channels if out_channels is None else out_channels,
            num_layers=config.get("num_layers", 28),
            sample_size=sample_size,
            patch_size=config.get("patch_size", 2),
            caption_channels=_caption_channels(config),
            interpolation_scale=max(sample_size // 64, 1) if scale is None else scale,
            norm_eps=config.get("norm_eps", 1e-6),
            is_sized=sample_size == 128 if additional is None else additional,
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that makes diffusers build the same network."""
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


def refuse_unknown(config: dict[str, Any], known: Iterable[str]) -> None:
    """Raise `CheckpointError` for a key that is not `known` and switches something on: the network would be another."""
    unknown = sorted(key for key, value in config.items() if value and not key.startswith("_") and key not in known)
    if unknown:
        raise CheckpointError(f"transformer config: not supported: {', '.join(unknown)}")


def _require(config: dict[str, Any], key: str, value: object) -> None:
    if config.get(key, value) != value:
        raise CheckpointError(f"transformer config: {key} is {config[key]!r}, only {value!r} is supported")


def _caption_channels(config: dict[str, Any]) -> int:
    channels = config.get("caption_channels")
    if channels is None:
        raise CheckpointError("transformer config: caption_channels is missing, only models with a caption projection are supported")
    return int(channels)
