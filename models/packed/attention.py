"""Attention over rows of different lengths that lie end to end.

A back end plans once for the rows that run together, and then answers at every layer and tick. The plain one is the oracle.

Shapes: T query tokens, S key tokens, A heads, K channels a head; in a piece R rows of N queries and L keys.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.packed.layout import Layout, RowRun, cut_alike

AttentionMetadata = Any  # a back end's own

# from so many keys on, and up to so many queries times keys, a matrix of scores is cheaper than doing without
FEWEST_KEYS, LARGEST_PRODUCT = 32, 128 * 128


class PackedAttention(Protocol):
    """Attention of each row's queries to the keys of the same row."""

    @property
    def name(self) -> str: ...

    def plan(
        self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype
    ) -> AttentionMetadata:
        """For rows of these lengths; `mask` (S,) is True for keys to attend to, None for all."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionMetadata) -> Tensor:
        """q (T, A, K), k and v (S, A, K): (T, A, K)."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows with as many queries and as many keys each; `bias` (R, 1, 1, L) is added to the scores."""

    queries: RowRun
    keys: RowRun
    bias: Tensor | None


Kernel = Callable[
    [Tensor, Tensor, Tensor, Tensor | None], Tensor
]  # q (R, A, N, K), k and v (R, A, L, K), bias: (R, A, N, K)


@dataclass(frozen=True, slots=True)
class ByPieces:
    """A back end that takes rows of equal lengths at a time, by a `kernel` for batches."""

    name: str
    kernel: Kernel

    def plan(
        self, queries: Layout, keys: Layout, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Piece, ...]:
        return tuple(Piece(q, k, _bias(mask, k, dtype)) for q, k in cut_alike((queries, keys)))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: tuple[Piece, ...]) -> Tensor:
        done = [
            self.kernel(_rows(q, piece.queries), _rows(k, piece.keys), _rows(v, piece.keys), piece.bias)
            .transpose(1, 2)
            .flatten(0, 1)
            for piece in plan
        ]
        return done[0] if len(done) == 1 else torch.cat(done)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v, written out in float32."""
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return ((scores if bias is None else scores + bias.float()).softmax(dim=-1) @ v.float()).to(q.dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention: no N x L matrix in memory."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Two batched products around a softmax; `fused` where their N x L matrix would be large, or hardly be one."""
    rows, heads, n, channels = q.shape
    if k.shape[2] < FEWEST_KEYS or n * k.shape[2] > LARGEST_PRODUCT:
        return fused(q, k, v, bias)
    q, k, v = (x.reshape(rows * heads, -1, channels) for x in (q, k, v))
    if bias is None:
        start, beta = q.new_empty(()), 0.0  # not read
    else:
        start, beta = bias.expand(rows, heads, 1, -1).reshape(rows * heads, 1, -1), 1.0
    scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=beta, alpha=1.0 / math.sqrt(channels))
    return torch.bmm(scores.softmax(dim=-1), v).unflatten(0, (rows, heads))


def _bias(mask: Tensor | None, run: RowRun, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    own = run.batch(mask)[:, None, None]
    return (
        None
        if bool(own.all())
        else torch.zeros(own.shape, dtype=dtype, device=own.device).masked_fill(~own, -torch.inf)
    )


def _rows(x: Tensor, run: RowRun) -> Tensor:
    return run.batch(x).transpose(1, 2)


BACKENDS: dict[str, PackedAttention] = {
    kernel.__name__: ByPieces(kernel.__name__, kernel) for kernel in (plain, fused, products)
}
