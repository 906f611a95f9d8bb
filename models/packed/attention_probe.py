"""Measure the error of an attention back end against plain attention, by one call on the device.

The call has what the engine's batches have: rows of several lengths, and masked keys.
"""

import torch

from safelight.models.packed.attention import BACKENDS, PackedAttention
from safelight.models.packed.layout import Layout

TOLERANCE = 0.02  # as a share of the largest value, in bfloat16
QUERIES, KEYS = Layout((64, 64, 96)), Layout((16, 32, 32))


def largest_error(
    attention: PackedAttention, device: torch.device, dtype: torch.dtype, heads: int, channels: int
) -> float:
    """Return the largest difference from plain attention, as a share of its largest value.

    Args:
        attention: the back end under test.
        device: where to run it.
        dtype: of queries, keys and values.
        heads: number of attention heads A.
        channels: channels per head K.

    Returns:
        The relative error; NaN if any output is NaN.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = (QUERIES.num_tokens, KEYS.num_tokens, KEYS.num_tokens)
    q, k, v = (
        torch.randn(length, heads, channels, generator=generator).to(device, dtype) for length in lengths
    )
    mask = torch.ones(KEYS.num_tokens, dtype=torch.bool)
    mask[12:16] = False
    outputs = []
    for backend in (attention, BACKENDS["plain"]):
        metadata = backend.prepare(QUERIES, KEYS, mask, dtype, device)
        selected_k, selected_v = (backend.select_keys(x, 0, metadata) for x in (k, v))
        outputs.append(backend(q, selected_k, selected_v, metadata).float())
    output, expected = outputs
    return float((output - expected).abs().max() / expected.abs().max())
