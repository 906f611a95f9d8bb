"""Choose the attention back end of a network, with the reason in words."""

import torch

from safelight.models.packed.attention import BACKENDS, PackedAttention
from safelight.models.packed.xformers_attention import XformersUnavailable, load_xformers


def select_attention(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int
) -> tuple[PackedAttention, str]:
    """Return the fastest back end that works on this device, and the reason for the choice.

    On a CPU only batch-invariant back ends are considered.

    Args:
        device: where the network runs.
        dtype: of queries, keys and values.
        heads: number of attention heads.
        channels: channels per head.
    """
    if device.type == "cpu":
        return _select_on_cpu(dtype, heads)
    try:
        attention = load_xformers(device, dtype, heads, channels)
        return attention, "a real call on this device gave what plain attention gives"
    except XformersUnavailable as error:
        return BACKENDS["fused"], str(error)


def _select_on_cpu(dtype: torch.dtype, heads: int) -> tuple[PackedAttention, str]:
    """Select by dtype and number of threads.

    A batched product gives each thread whole (row, head) matrices.
    A single row with fewer heads than threads would have its matrices split between threads, and its bits
    would differ from those that it has in a larger batch.
    """
    threads = torch.get_num_threads()
    if dtype != torch.bfloat16:
        return BACKENDS["fused"], "in float32 torch's fused attention is the fastest on a CPU"
    if heads < threads:
        reason = (
            f"{threads} threads would split the products of {heads} heads, which changes bits with the batch"
        )
        return BACKENDS["fused"], reason
    return BACKENDS["products"], "batched products are the fastest on a CPU in bfloat16"
