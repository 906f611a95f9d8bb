"""Products whose bits for a token are the same in any company, on whatever processor this is.

A library picks the order of a sum by the shape of the product, from its own tables for each processor: with few tokens, or for long
sums, it may share a sum out. So products of all lengths are tried here before one is served, and then only those that agree are taken.

Shapes: T tokens, D_in and D_out channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

STEP, MOST = 64, 1024  # tokens of a product: multiples of the one, up to the other
DISTINCT = 61  # coprime with every block that a kernel may have, so that each token stands everywhere in one

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Lengths:
    """From `least` to `most` tokens, in multiples of `STEP`, a product has the same bits for a token."""

    least: int
    most: int


def invariant(product: Product, lengths: Lengths) -> Product:
    """x (T, D_in) to (T, D_out) by products of these lengths alone: what is missing is filled up with zeros, what is too much is cut."""

    def one(x: Tensor) -> Tensor:
        count = len(x)
        length = max(lengths.least, -(-count // STEP) * STEP)
        return product(x) if count == length else product(F.pad(x, (0, 0, 0, length - count)))[:count]

    return lambda x: (
        one(x) if len(x) <= lengths.most else torch.cat([one(part) for part in x.split(lengths.most)])
    )


def agreeing_lengths(product: Product, d_in: int, dtype: torch.dtype) -> Lengths:
    """The longest run of lengths up to `MOST` at which `product`, (T, d_in) to (T, any), has the same bits for a token.

    Its weight should be a `cancelling` one, so that any other order of a sum is seen.
    """
    x = _drawn(DISTINCT, d_in, dtype)[torch.arange(MOST) % DISTINCT]
    bits = [_bits_of_each(product(x[:length])) for length in range(STEP, MOST + 1, STEP)]
    alike = [list(run) for _, run in groupby(range(len(bits)), key=lambda number: bits.index(bits[number]))]
    longest = max((run for run in alike if bits[run[0]]), key=len, default=[0])
    return Lengths(STEP * (longest[0] + 1), STEP * (longest[-1] + 1))


def cancelling(d_out: int, d_in: int, dtype: torch.dtype) -> Tensor:
    """A weight (d_out, d_in) with sums that come to nothing but their own rounding, for tokens as `agreeing_lengths` draws them."""
    return _halves(
        torch.randn(d_out, d_in // 2, generator=torch.Generator().manual_seed(0)), -1.0, d_in, dtype
    )


def _bits_of_each(found: Tensor) -> bytes:
    """Of the distinct tokens, or nothing where one has other bits at another place of the same product."""
    wanted = found[:DISTINCT]
    is_same = all(torch.equal(each, wanted[: len(each)]) for each in found.split(DISTINCT))
    return wanted.contiguous().view(torch.uint8).numpy().tobytes() if is_same else b""


def _drawn(count: int, d_in: int, dtype: torch.dtype) -> Tensor:
    return _halves(
        torch.randn(count, d_in // 2, generator=torch.Generator().manual_seed(1)), 1.0, d_in, dtype
    )


def _halves(half: Tensor, sign: float, d_in: int, dtype: torch.dtype) -> Tensor:
    """Every channel twice, the second time by `sign`, in an order that tears the pairs apart; an odd one out is zero."""
    both = F.pad(torch.cat([half, sign * half], 1), (0, d_in % 2))
    return both[:, torch.randperm(d_in, generator=torch.Generator().manual_seed(2))].to(dtype).contiguous()
