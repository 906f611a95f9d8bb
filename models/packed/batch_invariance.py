"""Matrix products that give a token the same bits in every batch, on any CPU.

A library picks the order of a sum by the shape of the product, from its own tables for each CPU: with few
tokens or long sums it may split a sum between threads.
So products of all lengths are tried before one is used, and only lengths whose bits agree are served.

Shapes: T tokens, D_in and D_out channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_STEP, MAX_LENGTH = 64, 1024  # products take multiples of the step, in tokens
# Coprime with every block size of a kernel, so that each token meets every place in a block.
DISTINCT_TOKENS = 61

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LengthRange:
    """The range of lengths, in multiples of `LENGTH_STEP`, at which a product gives a token the same bits."""

    min_tokens: int
    max_tokens: int


def batch_invariant(product: Product, lengths: LengthRange) -> Product:
    """Wrap a product, (T, D_in) to (T, D_out), so that it is only called at the given lengths.

    Shorter inputs are padded with zeros, longer ones are split.
    """

    def padded(x: Tensor) -> Tensor:
        count = len(x)
        length = max(lengths.min_tokens, -(-count // LENGTH_STEP) * LENGTH_STEP)
        return product(x) if count == length else product(F.pad(x, (0, 0, 0, length - count)))[:count]

    return lambda x: (
        padded(x)
        if len(x) <= lengths.max_tokens
        else torch.cat([padded(chunk) for chunk in torch.split(x, lengths.max_tokens)])
    )


def find_invariant_lengths(product: Product, d_in: int, dtype: torch.dtype) -> LengthRange | None:
    """Find the longest range of lengths up to `MAX_LENGTH` at which `product` gives a token the same bits.

    The product maps (T, d_in) to (T, any). Its weight should be a `cancelling_weight`, so that any other
    order of a sum shows in the bits. None if a token's bits depend on its position at every length.
    """
    x = _cancelling_tokens(DISTINCT_TOKENS, d_in, dtype)[torch.arange(MAX_LENGTH) % DISTINCT_TOKENS]
    bits = [_token_bits(product(x[:length])) for length in range(LENGTH_STEP, MAX_LENGTH + 1, LENGTH_STEP)]
    runs = [list(run) for _, run in groupby(range(len(bits)), key=lambda index: bits.index(bits[index]))]
    longest = max((run for run in runs if bits[run[0]]), key=len, default=None)
    if longest is None:
        return None
    return LengthRange(LENGTH_STEP * (longest[0] + 1), LENGTH_STEP * (longest[-1] + 1))


def cancelling_weight(d_out: int, d_in: int, dtype: torch.dtype) -> Tensor:
    """Return a weight (d_out, d_in) whose sums over the probe tokens cancel to their rounding errors."""
    return _mirrored_halves(
        torch.randn(d_out, d_in // 2, generator=torch.Generator().manual_seed(0)), -1.0, d_in, dtype
    )


def _token_bits(output: Tensor) -> bytes:
    """The bits of the distinct tokens; empty if one has other bits at another place of the same product."""
    bits = output.contiguous().view(torch.uint8).numpy()
    first = bits[:DISTINCT_TOKENS]
    # numpy compares bytes much faster than torch.equal compares many small tensors
    is_same = np.array_equal(bits, first[np.arange(len(bits)) % len(first)])
    return first.tobytes() if is_same else b""


def _cancelling_tokens(count: int, d_in: int, dtype: torch.dtype) -> Tensor:
    """Random tokens (count, d_in) whose products with `cancelling_weight` are zero but for rounding."""
    return _mirrored_halves(
        torch.randn(count, d_in // 2, generator=torch.Generator().manual_seed(1)), 1.0, d_in, dtype
    )


def _mirrored_halves(half: Tensor, sign: float, d_in: int, dtype: torch.dtype) -> Tensor:
    """Repeat each channel once, times `sign`, in a fixed random order; an odd last channel is zero."""
    channels = F.pad(torch.cat([half, sign * half], 1), (0, d_in % 2))
    order = torch.randperm(d_in, generator=torch.Generator().manual_seed(2))
    return channels[:, order].to(dtype).contiguous()
