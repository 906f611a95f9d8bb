"""Floating-point operations by closed formulas: one multiply-add is two, elementwise work is not counted.

Each is chosen by the type of the network's configuration; `TypeError` for a family without formulas.
Shapes: N image tokens, L text tokens, T times, d width, p patch, C channels.
"""

from functools import singledispatch

from safelight.models.checkpoints.options import DiTConfig
from safelight.models.networks.class_dit import ClassDiTConfig
from safelight.models.networks.interface import NetworkConfig
from safelight.models.networks.layers import TIME_FREQUENCIES
from safelight.models.networks.mmdit import MMDiTConfig


@singledispatch
def forward_flops(config: NetworkConfig, height: int, width: int, text_tokens: int) -> int:
    """One row of one tick on latents of `height` x `width`, with what is computed once already there."""
    raise TypeError(f"no formulas for {type(config).__name__}")


@singledispatch
def text_flops(config: NetworkConfig, text_tokens: int) -> int:
    """What one text costs whatever its plan, once as long as it is remembered."""
    raise TypeError(f"no formulas for {type(config).__name__}")


@singledispatch
def row_flops(config: NetworkConfig, text_tokens: int, num_times: int) -> int:
    """What else one text costs under a plan of `num_times`, once a sample."""
    raise TypeError(f"no formulas for {type(config).__name__}")


@singledispatch
def times_flops(config: NetworkConfig, num_times: int) -> int:
    """What the times of a plan cost, once a plan."""
    raise TypeError(f"no formulas for {type(config).__name__}")


@forward_flops.register
def _(config: DiTConfig, height: int, width: int, text_tokens: int) -> int:
    """A block is 8Nd^2 (self-attention's projections) + 4N^2d (its two products) + 4Nd^2 + 4NLd (cross-attention) + 16Nd^2."""
    d, n = config.width, _image_tokens(config, height, width)
    block = 28 * n * d * d + 4 * n * n * d + 4 * n * text_tokens * d
    return config.num_layers * block + _patches(config, d, config.out_channels, n)


@text_flops.register
def _(config: DiTConfig, text_tokens: int) -> int:
    """Caption projection and every block's text keys and values."""
    d = config.width
    return (
        2 * text_tokens * (config.caption_channels * d + d * d) + config.num_layers * 4 * text_tokens * d * d
    )


@text_flops.register
def _(config: MMDiTConfig, text_tokens: int) -> int:
    """The text's projection."""
    return 2 * text_tokens * config.joint_attention_dim * config.width


@text_flops.register
def _(config: ClassDiTConfig, text_tokens: int) -> int:
    """All of it waits for the times."""
    return 0


@row_flops.register
def _(config: DiTConfig, text_tokens: int, num_times: int) -> int:
    """The times do not meet the text."""
    return 0


@times_flops.register
def _(config: DiTConfig, num_times: int) -> int:
    """Time embedding and shared modulation, and the embedding of the image's size."""
    d, third = config.width, config.width // 3
    of_size = (
        3 * 2 * (TIME_FREQUENCIES * third + third * third) if config.is_sized else 0
    )  # height, width, aspect ratio
    return num_times * 2 * (TIME_FREQUENCIES * d + d * d + 6 * d * d) + of_size


@forward_flops.register
def _(config: MMDiTConfig, height: int, width: int, text_tokens: int) -> int:
    """A block is 24(N + L)d^2 + 4(N + L)^2d, and 8Nd^2 + 4N^2d where it is dual; the last leaves the text's 18Ld^2 out."""
    d, n = config.width, _image_tokens(config, height, width)
    block = 24 * (n + text_tokens) * d * d + 4 * (n + text_tokens) ** 2 * d
    dual = len(config.dual_attention_layers) * (8 * n * d * d + 4 * n * n * d)
    unread = 18 * text_tokens * d * d
    return config.num_layers * block + dual - unread + _patches(config, d, config.out_channels, n)


@row_flops.register
def _(config: MMDiTConfig, text_tokens: int, num_times: int) -> int:
    """The pooled text's embedding, and every adaLN at every time."""
    d, duals = config.width, len(config.dual_attention_layers)
    parts = config.num_layers * 12 - 4 + 3 * duals + 2  # the last block's text has two for six
    return 2 * (config.pooled_projection_dim * d + d * d) + num_times * 2 * parts * d * d


@times_flops.register
def _(config: MMDiTConfig, num_times: int) -> int:
    """The time embedding."""
    return num_times * 2 * (TIME_FREQUENCIES * config.width + config.width**2)


@forward_flops.register
def _(config: ClassDiTConfig, height: int, width: int, text_tokens: int) -> int:
    """A block is 24Nd^2 + 4N^2d; there is no text."""
    d, n = config.width, _image_tokens(config, height, width)
    return config.num_layers * (24 * n * d * d + 4 * n * n * d) + _patches(config, d, config.out_channels, n)


@row_flops.register
def _(config: ClassDiTConfig, text_tokens: int, num_times: int) -> int:
    """Every adaLN at every time: the class is looked up."""
    return num_times * 2 * (6 * config.num_layers + 2) * config.width**2


@times_flops.register
def _(config: ClassDiTConfig, num_times: int) -> int:
    """A time embedding a block."""
    return num_times * config.num_layers * 2 * (TIME_FREQUENCIES * config.width + config.width**2)


def _image_tokens(config: NetworkConfig, height: int, width: int) -> int:
    return (height // config.patch_size) * (width // config.patch_size)


def _patches(config: NetworkConfig, width: int, out_channels: int, tokens: int) -> int:
    """Into tokens and back."""
    return 2 * tokens * width * config.patch_size**2 * (config.in_channels + out_channels)
