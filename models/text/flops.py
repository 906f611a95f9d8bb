"""Floating-point operations of text encoders on one text, by closed formulas.

One multiply-add is two operations; elementwise work is not counted.
The formulas need only configurations. No torch is imported here.

Shapes: L text tokens, D width, I inner width of attention, F width of the MLP.
"""

from collections.abc import Mapping
from typing import Any

from safelight.models.text.config import ClipTextConfig, T5EncoderConfig

# open_clip's defaults of `text_cfg`
OPEN_CLIP_DEFAULTS = {"context_length": 77, "width": 512, "layers": 12, "mlp_ratio": 4.0}


def t5_flops(config: T5EncoderConfig, num_tokens: int) -> int:
    """A T5 encoder on `num_tokens`, padding included. A gated MLP has three matrices, a plain one two."""
    matrices = 3 if config.is_gated else 2
    return config.num_layers * _block(num_tokens, config.d_model, config.inner, config.d_ff, matrices)


def clip_flops(config: ClipTextConfig) -> int:
    """A CLIP text tower in transformers' layout, all of its positions filled; one state is projected."""
    width = config.hidden_size
    block = _block(config.max_position_embeddings, width, width, config.intermediate_size, 2)
    return config.num_hidden_layers * block + 2 * width * config.projection_dim


def open_clip_flops(config: Mapping[str, Any]) -> int:
    """The text tower of open_clip's `model_cfg`, all of its positions filled; one state is projected."""
    text = OPEN_CLIP_DEFAULTS | config["text_cfg"]
    width = int(text["width"])
    block = _block(int(text["context_length"]), width, width, int(width * text["mlp_ratio"]), 2)
    return int(text["layers"]) * block + 2 * width * int(config["embed_dim"])


def _block(length: int, width: int, inner: int, mlp: int, matrices: int) -> int:
    """8LDI (attention's projections) + 4L^2I (its two products) + 2LDF for each of the MLP's matrices."""
    return 8 * length * width * inner + 4 * length**2 * inner + 2 * matrices * length * width * mlp
