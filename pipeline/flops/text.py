"""Floating-point operations of text towers on one text, by closed formulas: one multiply-add is two, elementwise work is not counted.

Functions of the configurations alone, without torch. Shapes: L text tokens, D width, I inner width of attention, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.models.text.hf_clip import ClipTextConfig
    from safelight.models.text.t5 import T5EncoderConfig

OPEN_CLIP = {
    "context_length": 77,
    "width": 512,
    "layers": 12,
    "mlp_ratio": 4.0,
}  # what open_clip takes where a config says nothing


def t5_flops(config: T5EncoderConfig, num_tokens: int) -> int:
    """A T5 encoder reading `num_tokens`, padding included. Of the gated MLP three matrices are used, of the plain one two."""
    return config.num_layers * _block(
        num_tokens, config.d_model, config.inner, config.d_ff, 3 if config.is_gated else 2
    )


def clip_flops(config: ClipTextConfig) -> int:
    """A CLIP text tower in transformers' layout, all of its positions filled; one state is projected."""
    width = config.hidden_size
    block = _block(config.max_position_embeddings, width, width, config.intermediate_size, 2)
    return config.num_hidden_layers * block + 2 * width * config.projection_dim


def open_clip_flops(config: Mapping[str, Any]) -> int:
    """The text tower of open_clip's `model_cfg`, all of its positions filled; one state is projected."""
    text = OPEN_CLIP | config["text_cfg"]
    width = int(text["width"])
    block = _block(int(text["context_length"]), width, width, int(width * text["mlp_ratio"]), 2)
    return int(text["layers"]) * block + 2 * width * int(config["embed_dim"])


def _block(length: int, width: int, inner: int, mlp: int, matrices: int) -> int:
    """8LDI (attention's projections) + 4L^2I (its two products) + 2LDF for each of the MLP's matrices."""
    return 8 * length * width * inner + 4 * length**2 * inner + 2 * matrices * length * width * mlp
