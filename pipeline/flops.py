"""Floating-point operations by closed formulas: one multiply-add is two, elementwise work is not counted.

Shapes: N image tokens, L text tokens, d width, p patch, C channels.
"""

from models.config import DiTConfig


def dit_forward_flops(config: DiTConfig, height: int, width: int, text_tokens: int) -> int:
    """One row of one forward of the DiT on latents of `height` x `width`, with text keys and values already there.

    A block is 8Nd^2 (self-attention's projections) + 4N^2d (its two products) + 4Nd^2 + 4NLd (cross-attention) + 16Nd^2.
    """
    d, p = config.width, config.patch_size
    n = (height // p) * (width // p)
    block = 28 * n * d * d + 4 * n * n * d + 4 * n * text_tokens * d
    patches = 2 * n * p * p * config.in_channels * d + 2 * n * d * p * p * config.out_channels
    return config.num_layers * block + patches


def dit_text_flops(config: DiTConfig, text_tokens: int) -> int:
    """Caption projection and every block's text keys and values: once a text."""
    d = config.width
    return 2 * text_tokens * (config.caption_channels * d + d * d) + config.num_layers * 4 * text_tokens * d * d


def dit_modulation_flops(config: DiTConfig, num_times: int) -> int:
    """Time embedding and shared modulation of `num_times` times, and the embedding of the picture's size: once a plan."""
    d, third = config.width, config.width // 3
    of_size = 3 * 2 * (256 * third + third * third) if config.is_sized else 0  # height, width, aspect ratio
    return num_times * 2 * (256 * d + d * d + 6 * d * d) + of_size
