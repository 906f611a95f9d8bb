"""Attention as one function with two back ends, `sdpa` and `plain`; the plain one is the oracle.

Shapes: B rows, H heads, N queries, L keys, K channels a head.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """Map q (B, H, N, K), k and v (B, H, L, K) to (B, H, N, K).

    `key_mask` (B, L) is True for the keys to attend to; None attends to all of them.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """torch's fused attention: no N x L matrix in memory."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def plain(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, written out; every other back end must equal it."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    return scores.softmax(dim=-1) @ v


BACKENDS: dict[str, Attention] = {"sdpa": sdpa, "plain": plain}
