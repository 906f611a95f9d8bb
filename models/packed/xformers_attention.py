"""Packed attention by xformers' memory-efficient kernels: one call for rows of any lengths. CUDA only; docs/adr says why so carefully.

Shapes: T query tokens, S key tokens, A heads, K channels a head.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safelight.models.cuda_runtime import preload_cuda_runtime
from safelight.models.packed.attention import PackedAttention
from safelight.models.packed.attention_probe import TOLERANCE, largest_error
from safelight.models.packed.layout import Layout


class XformersUnavailable(Exception):
    """xformers is not to be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class BlockDiagonal:
    """What a call is given: the rows' lengths as xformers' mask, and which keys are attended to at all (None: every one)."""

    bias: Any
    kept: Tensor | None


@dataclass(frozen=True, slots=True)
class XformersAttention:
    """A `PackedAttention`. Masked keys are left out of the call, so that the lengths say everything."""

    ops: Any  # the module xformers.ops

    @property
    def name(self) -> str:
        return "xformers"

    def plan(self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype) -> BlockDiagonal:
        lengths = list(keys.lengths)
        kept = None
        if mask is not None and not bool(mask.all()):
            kept = mask.nonzero()[:, 0]
            lengths = [int(own.sum()) for own in mask.cpu().split(list(keys.lengths))]
        device = None if mask is None else mask.device
        return BlockDiagonal(
            self.ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(
                list(queries.lengths), lengths, device=device
            ),
            kept,
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockDiagonal) -> Tensor:
        if plan.kept is not None:
            k, v = k[plan.kept], v[plan.kept]
        attended: Tensor = self.ops.memory_efficient_attention(
            q[None], k[None], v[None], attn_bias=plan.bias
        )[0]
        return attended


def load_xformers(device: torch.device, dtype: torch.dtype, heads: int, channels: int) -> PackedAttention:
    """The back end, after a real call on `device` gave what the plain oracle gives; raise `XformersUnavailable` otherwise."""
    if device.type != "cuda":
        raise XformersUnavailable("xformers' kernels run on CUDA only")
    attention = XformersAttention(import_ops())
    try:
        error = largest_error(attention, device, dtype, heads, channels)
    except Exception as failed:  # its dispatcher and CUDA raise all sorts
        raise XformersUnavailable(
            f"a call of xformers failed: {' '.join(str(failed).split())[:200]}"
        ) from None
    if not error < TOLERANCE:
        raise XformersUnavailable(
            f"xformers differs from plain attention by {error:.2g} of its largest value"
        )
    return attention


def import_ops() -> Any:
    """xformers.ops, with the CUDA runtime that its wheel wants already in memory."""
    if importlib.util.find_spec("xformers") is None:
        raise XformersUnavailable("xformers is not installed: in the checkout, pip install -e '.[cuda]'")
    preload_cuda_runtime()
    try:
        import xformers.ops
    except Exception as failed:  # a wheel for another torch fails in many ways
        raise XformersUnavailable(
            f"xformers cannot be imported: {' '.join(str(failed).split())[:200]}"
        ) from None
    return xformers.ops
