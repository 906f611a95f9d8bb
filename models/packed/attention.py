"""Attention over rows of different lengths that are packed end to end.

A back end prepares its metadata once for a batch of rows and reuses it at every layer and tick.
The back end `plain` is the reference for the others.

Shapes: T query tokens, S key tokens, A heads, K channels per head.
A batch of equal rows has R rows of N queries and L keys.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.device_copies import to_device
from safelight.models.packed.layout import Layout, RowRun, common_runs

AttentionMetadata = Any  # each back end has its own type

# Explicit products are faster than fused attention from this many keys on, up to this many scores (N x L).
MIN_KEYS, MAX_SCORES = 32, 128 * 128


class PackedAttention(Protocol):
    """Attention of each row's queries to the keys of the same row."""

    @property
    def name(self) -> str: ...

    def prepare(
        self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> AttentionMetadata:
        """Return the metadata for rows of these lengths.

        Args:
            queries: the rows' numbers of queries.
            keys: the rows' numbers of keys.
            mask: (S,), on the host, True for the keys to attend to; None attends to all of them.
            dtype: of queries, keys and values.
            device: where they are. The host does not wait for it.
        """
        ...

    def select_keys(self, keys: Tensor, dim: int, metadata: AttentionMetadata) -> Tensor:
        """Return the keys or values in the form that calls with `metadata` take; `dim` has all S of them.

        Once a batch, not at every call.
        """
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Map q (T, A, K), k and v (S, A, K), both after `select_keys`, to (T, A, K)."""
        ...


@dataclass(frozen=True, slots=True)
class EqualRows:
    """Adjacent rows with equal numbers of queries and of keys; `bias` (R, 1, 1, L) is added to the scores."""

    queries: RowRun
    keys: RowRun
    bias: Tensor | None


# q (R, A, N, K), k and v (R, A, L, K), bias (R, 1, 1, L) or None, to (R, A, N, K)
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class PerLengthAttention:
    """A back end that calls a batched `kernel` once for each run of rows of equal lengths."""

    name: str
    kernel: Kernel

    def prepare(
        self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> tuple[EqualRows, ...]:
        return tuple(EqualRows(q, k, _bias(mask, k, dtype, device)) for q, k in common_runs((queries, keys)))

    def select_keys(self, keys: Tensor, dim: int, metadata: tuple[EqualRows, ...]) -> Tensor:
        return keys

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, metadata: tuple[EqualRows, ...]) -> Tensor:
        outputs = [
            self.kernel(
                _heads_first(q, rows.queries),
                _heads_first(k, rows.keys),
                _heads_first(v, rows.keys),
                rows.bias,
            )
            .transpose(1, 2)
            .flatten(0, 1)
            for rows in metadata
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v, written out in float32."""
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return ((scores if bias is None else scores + bias.float()).softmax(dim=-1) @ v.float()).to(q.dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention, which never holds the N x L scores in memory."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Two batched products around a softmax; `fused` where the N x L scores would be too few or too many."""
    rows, heads, n, channels = q.shape
    if k.shape[2] < MIN_KEYS or n * k.shape[2] > MAX_SCORES:
        return fused(q, k, v, bias)
    q, k, v = (x.reshape(rows * heads, -1, channels) for x in (q, k, v))
    if bias is None:
        start, beta = q.new_empty(()), 0.0  # with beta 0 the start is never read
    else:
        start, beta = bias.expand(rows, heads, 1, -1).reshape(rows * heads, 1, -1), 1.0
    scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=beta, alpha=1.0 / math.sqrt(channels))
    return torch.unflatten(torch.bmm(scores.softmax(dim=-1), v), 0, (rows, heads))


def _bias(mask: Tensor | None, keys: RowRun, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return 0 for keys to attend to and -inf for the others, (R, 1, 1, L); None if no key is masked."""
    if mask is None:
        return None
    attended = keys.batch(mask)[:, None, None]
    if bool(attended.all()):
        return None
    bias = torch.zeros(attended.shape, dtype=dtype).masked_fill(~attended, -torch.inf)
    return to_device(bias, device)


def _heads_first(x: Tensor, run: RowRun) -> Tensor:
    """The tokens of a run, of x (T, A, K), as (R, A, N, K)."""
    return run.batch(x).transpose(1, 2)


BACKENDS: dict[str, PackedAttention] = {
    kernel.__name__: PerLengthAttention(kernel.__name__, kernel) for kernel in (plain, fused, products)
}
