"""Which back end of attention a network runs on, and why."""

import torch

from safelight.models.packed.attention import BACKENDS, PackedAttention
from safelight.models.packed.xformers_attention import XformersUnavailable, load_xformers


def select_attention(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int
) -> tuple[PackedAttention, str]:
    """The fastest back end that works here, and the reason in words; on a processor one whose bits for a row depend on that row alone."""
    if device.type == "cpu":
        return _on_processor(dtype, heads)
    try:
        return load_xformers(
            device, dtype, heads, channels
        ), "a real call on this device gave what plain attention gives"
    except XformersUnavailable as error:
        return BACKENDS["fused"], str(error)


def _on_processor(dtype: torch.dtype, heads: int) -> tuple[PackedAttention, str]:
    """Threads share out whole products, one a row and head. With fewer of them than threads they would share out a product,
    whose bits are then others than in company."""
    if dtype != torch.bfloat16:
        return BACKENDS["fused"], "in float32 torch's fused attention is the faster one on a processor"
    if heads < torch.get_num_threads():
        return BACKENDS[
            "fused"
        ], f"{torch.get_num_threads()} threads would share out the products of {heads} heads, and change bits"
    return BACKENDS["products"], "batched products are the faster ones on a processor in bfloat16"
