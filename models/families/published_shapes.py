"""Published checkpoints by name, at their true shape or shrunk to a tiny one. No torch is imported here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safelight.models.families.registry import list_families
from safelight.models.families.spec import Family, PartConfig, PublishedCheckpoint, PublishedPart

TINY = "tiny"  # alone the tiny form of `TINY_NAME`, and `tiny-NAME` that of any other
TINY_NAME = "pixart-sigma"

# The options that decide how large a transformer or an autoencoder is, in a form that takes milliseconds.
# A head's channels are a multiple of 8, and a width is one of 3 and of 4, as some of the networks need.
TINY_TRANSFORMER: Mapping[str, Any] = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "sample_size": 8,
    "cross_attention_dim": 48, "caption_channels": 24, "caption_projection_dim": 48,
    "joint_attention_dim": 24, "pooled_projection_dim": 16, "pos_embed_max_size": 16,
    "num_embeds_ada_norm": 10,
}  # fmt: skip
TINY_VAE: Mapping[str, Any] = {
    "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip


def list_shapes() -> tuple[str, ...]:
    """The names of the published checkpoints of all families."""
    return tuple(_by_name())


def find_shape(name: str) -> tuple[Family, PublishedCheckpoint]:
    """The family and the checkpoint with this name, or the name of its transformer, such as `dit-xl-2`.

    `tiny-NAME` is NAME with two small layers; `tiny` alone is `tiny-pixart-sigma`. Raises `KeyError` for
    other names.
    """
    if name == TINY:
        return find_shape(f"{TINY}-{TINY_NAME}")
    prefix, _, rest = name.partition("-")
    if prefix == TINY:
        family, published = find_shape(rest)
        return family, _shrunk(published, name)
    families = _by_name()
    family = families[name] if name in families else _by_transformer()[name]
    assert family.published is not None
    return family, family.published


def _by_name() -> dict[str, Family]:
    return {family.published.name: family for family in list_families() if family.published is not None}


def _by_transformer() -> dict[str, Family]:
    """The families by their transformer's name in the form of a checkpoint's."""
    return {
        family.published.parts["transformer"].name.lower().replace("/", "-").replace(" ", "-"): family
        for family in list_families()
        if family.published is not None
    }


def _shrunk(published: PublishedCheckpoint, name: str) -> PublishedCheckpoint:
    """The checkpoint with tiny layers; every option that decides what a layer does stays."""
    transformer, vae = published.parts["transformer"], published.parts["vae"]
    config: PartConfig = transformer.config | {
        key: value for key, value in TINY_TRANSFORMER.items() if key in transformer.config
    }
    if config.get("dual_attention_layers"):
        config["dual_attention_layers"] = [0]
    parts = {
        **published.parts,
        "transformer": PublishedPart(f"{transformer.name}, tiny", config),
        "vae": PublishedPart(f"{vae.name}, tiny", {**vae.config, **TINY_VAE}),
    }
    return replace(published, name=name, parts=parts)
