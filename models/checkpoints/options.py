"""Architecture numbers as frozen dataclasses, read from and written to diffusers' `config.json`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from safelight.models.checkpoints.json_files import CheckpointError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

POSITIVE, DEEP = "a positive number", 1000
Positive = Annotated[float, POSITIVE]
Depth = Annotated[
    int, DEEP
]  # layers: each is built before it is compared with what the files hold, so there is a bound

# what diffusers' PixArtTransformer2DModel is told that is read here, or means nothing to it
KNOWN = {
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "cross_attention_dim", "sample_size",
    "patch_size", "caption_channels", "interpolation_scale", "norm_eps", "norm_type", "activation_fn", "norm_elementwise_affine",
    "attention_bias", "attention_type", "use_additional_conditions", "dropout", "norm_num_groups", "num_embeds_ada_norm",
}  # fmt: skip

DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28, "sample_size": 128,
    "patch_size": 2,
}  # fmt: skip
# options that are built with one value only, diffusers' default
BUILT = {
    "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "attention_bias": True,
    "attention_type": "default",
}  # fmt: skip


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
    is_sized: bool = False  # told the image's resolution and aspect ratio, as PixArt-alpha at 1024 is

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> DiTConfig:
        """Read the `config.json` of a `PixArtTransformer2DModel`; raise `CheckpointError` for what is not built."""
        refuse_unknown(config, KNOWN)
        require(config, BUILT)
        given = DEFAULTS | {
            key: value for key, value in config.items() if value is not None or key == "out_channels"
        }
        if "caption_channels" not in given:
            raise CheckpointError(
                "caption_channels is missing, only models with a caption projection are supported"
            )
        if given["out_channels"] is None:
            given["out_channels"] = given["in_channels"]
        sample_size = given["sample_size"]
        given.setdefault(
            "interpolation_scale", max(sample_size // 64, 1) if isinstance(sample_size, int) else None
        )
        is_sized = given.get("use_additional_conditions", sample_size == 128)
        if type(is_sized) is not bool:
            raise CheckpointError(f"use_additional_conditions is {is_sized!r}, expected true or false")
        read = checked(cls, given | {"is_sized": is_sized})
        require(config, {"cross_attention_dim": read.width})
        return read

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


def checked(kind: type[Options], given: Mapping[str, Any], least: int = 1) -> Options:
    """The dataclass `kind` from those of `given` that it has; raise `CheckpointError` for a value of another type than its field's.

    Whole numbers must be at least `least`, other numbers finite; a list stands for a tuple.
    """
    hints = get_type_hints(kind, include_extras=True)
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in hints
    }
    for name, value in options.items():
        if not _is_of(value, hints[name], least):
            raise CheckpointError(f"{name} is {given[name]!r}, expected {_in_words(hints[name], least)}")
    return kind(**options)


def _is_of(value: object, hint: Any, least: int) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_of(value, each, least) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(each, get_args(hint)[0], 0) for each in value)
    if hint is int:
        return type(value) is int and value >= least
    if hint == Depth:
        return type(value) is int and least <= value <= DEEP
    if hint is float or hint == Positive:
        return type(value) in (int, float) and math.isfinite(value) and (hint is float or value > 0)
    return type(value) is hint


def _in_words(hint: Any, least: int) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(_in_words(each, least) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of whole numbers"
    if hint == Depth:
        return f"a whole number from {least} to {DEEP}"
    if hint == Positive:
        return POSITIVE
    return {
        int: f"a whole number, at least {least}",
        float: "a number",
        bool: "true or false",
        str: "a word",
        NoneType: "null",
    }[hint]


def refuse_unknown(config: dict[str, Any], known: Iterable[str]) -> None:
    """Raise `CheckpointError` for a key that is not `known` and switches something on: the network would be another."""
    unknown = sorted(
        key for key, value in config.items() if value and not key.startswith("_") and key not in known
    )
    if unknown:
        raise CheckpointError(f"not supported: {', '.join(unknown)}")


def require(config: Mapping[str, Any], built: Mapping[str, object]) -> None:
    """Raise `CheckpointError` for an option that is `built` with one value only and has another."""
    for key, value in built.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key} is {config[key]!r}, only {value!r} is supported")
