"""Floating-point operations of denoising networks, by the formulas of their family.

One multiply-add is two operations; elementwise work is not counted. All functions raise `TypeError` for the
configuration of a network that no family has. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safelight.models.families.registry import network_of

if TYPE_CHECKING:
    from safelight.models.networks.interface import NetworkConfig


def forward_flops(config: NetworkConfig, height: int, width: int, text_tokens: int) -> int:
    """Operations of one row in one tick on latents of `height` x `width`, after all preparation."""
    return network_of(config).forward_flops(config, height, width, text_tokens)


def text_flops(config: NetworkConfig, text_tokens: int) -> int:
    """Operations of preparing one text for any plan, once as long as the result is cached."""
    return network_of(config).text_flops(config, text_tokens)


def row_flops(config: NetworkConfig, text_tokens: int, num_times: int) -> int:
    """Operations of combining one prepared text with the `num_times` of a plan, once a sample."""
    return network_of(config).row_flops(config, text_tokens, num_times)


def times_flops(config: NetworkConfig, num_times: int) -> int:
    """Operations of preparing the `num_times` of a plan, once a plan."""
    return network_of(config).times_flops(config, num_times)
