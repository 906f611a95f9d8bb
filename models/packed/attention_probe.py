"""How far a back end of attention is from the plain one, by a real call: rows of several lengths, keys left out, as the engine has them.

Shapes: heads A, K channels a head.
"""

import torch

from safelight.models.packed.attention import BACKENDS, PackedAttention
from safelight.models.packed.layout import Layout

TOLERANCE = 0.02  # of the largest value, in bfloat16
QUERIES, KEYS = Layout((64, 64, 96)), Layout((16, 32, 32))


def largest_error(
    attention: PackedAttention, device: torch.device, dtype: torch.dtype, heads: int, channels: int
) -> float:
    """The largest difference on `device` between A = `heads` heads of K = `channels`, as a share of the largest value; NaN for a NaN."""
    generator = torch.Generator().manual_seed(0)
    lengths = (QUERIES.num_tokens, KEYS.num_tokens, KEYS.num_tokens)
    q, k, v = (
        torch.randn(length, heads, channels, generator=generator).to(device, dtype) for length in lengths
    )
    mask = torch.ones(KEYS.num_tokens, dtype=torch.bool, device=device)
    mask[12:16] = False
    ours, wanted = (
        each(q, k, v, each.plan(QUERIES, KEYS, mask, dtype)).float()
        for each in (attention, BACKENDS["plain"])
    )
    return float((ours - wanted).abs().max() / wanted.abs().max())
