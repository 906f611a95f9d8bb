"""Packed attention by xformers' memory-efficient kernels: one call for rows of any lengths, on CUDA only.

docs/adr/0004-xformers.md says why it is tested before use.

Shapes: T query tokens, S key tokens, A heads, K channels per head.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safelight.models.cuda_runtime import preload_cuda_runtime
from safelight.models.device_copies import to_device
from safelight.models.packed.attention import PackedAttention
from safelight.models.packed.attention_probe import TOLERANCE, largest_error
from safelight.models.packed.layout import Layout


class XformersUnavailable(Exception):
    """xformers cannot be used on this device; the message says why."""


@dataclass(frozen=True, slots=True)
class BlockDiagonal:
    """Attention metadata: the rows' lengths as xformers' mask, and the unmasked keys' indices (None: all)."""

    bias: Any
    key_indices: Tensor | None


@dataclass(frozen=True, slots=True)
class XformersAttention:
    """A `PackedAttention`. Masked keys are removed once a batch, so the lengths describe everything."""

    ops: Any  # the module xformers.ops

    @property
    def name(self) -> str:
        return "xformers"

    def prepare(
        self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> BlockDiagonal:
        key_lengths, key_indices = list(keys.lengths), None
        if mask is not None and not bool(mask.all()):
            key_indices = to_device(mask.nonzero()[:, 0], device)
            row_masks = torch.split(mask, list(keys.lengths))
            key_lengths = [int(row_mask.sum()) for row_mask in row_masks]
        # xformers copies the lengths through pinned memory, too.
        bias = self.ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(
            list(queries.lengths), key_lengths, device=device
        )
        return BlockDiagonal(bias, key_indices)

    def select_keys(self, keys: Tensor, dim: int, metadata: BlockDiagonal) -> Tensor:
        return keys if metadata.key_indices is None else keys.index_select(dim, metadata.key_indices)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, metadata: BlockDiagonal) -> Tensor:
        output: Tensor = self.ops.memory_efficient_attention(
            q[None], k[None], v[None], attn_bias=metadata.bias
        )[0]
        return output


def load_xformers(device: torch.device, dtype: torch.dtype, heads: int, channels: int) -> PackedAttention:
    """Return the back end, after a real call on `device` has matched plain attention.

    Raises:
        XformersUnavailable: xformers is missing, fails, or gives other values.
    """
    if device.type != "cuda":
        raise XformersUnavailable("xformers' kernels run on CUDA only")
    attention = XformersAttention(import_ops())
    try:
        error = largest_error(attention, device, dtype, heads, channels)
    except Exception as cause:  # xformers' dispatcher and CUDA raise many types
        raise XformersUnavailable(f"a call of xformers failed: {_one_line(cause)}") from None
    if not error < TOLERANCE:  # a NaN is not less either
        raise XformersUnavailable(
            f"xformers differs from plain attention by {error:.2g} of its largest value"
        )
    return attention


def import_ops() -> Any:
    """Import xformers.ops after the CUDA runtime that its wheel needs; `XformersUnavailable` if it fails."""
    if importlib.util.find_spec("xformers") is None:
        raise XformersUnavailable("xformers is not installed: in the checkout, pip install -e '.[cuda]'")
    preload_cuda_runtime()
    try:
        import xformers.ops
    except Exception as cause:  # a wheel for another torch fails in many ways
        raise XformersUnavailable(f"xformers cannot be imported: {_one_line(cause)}") from None
    return xformers.ops


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
