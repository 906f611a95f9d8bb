"""Rows of tokens laid end to end: what many products over rows of different lengths can share.

Linear layers and norms take all tokens as one matrix. What is a row's own, attention and modulation, goes by runs: rows of equal
length that stand together are a batch without a copy.

Shapes: R rows, T tokens of all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowRun:
    """Rows of `length` tokens that stand together."""

    rows: slice
    tokens: slice
    length: int

    @property
    def num_rows(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def batch(self, x: Tensor) -> Tensor:
        """Its part of the tokens x (T, ...), as (rows, length, ...)."""
        return x[self.tokens].view(self.num_rows, self.length, *x.shape[1:])


@dataclass(frozen=True)
class Layout:
    """How many tokens each row has, in the order in which they lie."""

    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def runs(self) -> tuple[RowRun, ...]:
        """Rows of one length after another, from the first on."""
        runs: list[RowRun] = []
        row = token = 0
        for length, equal in groupby(self.lengths):
            count = len(list(equal))
            runs.append(RowRun(slice(row, row + count), slice(token, token + count * length), length))
            row, token = row + count, token + count * length
        return tuple(runs)

    def by_row(
        self, function: Callable[..., Tensor], tokens: Sequence[Tensor], of_rows: Sequence[Tensor]
    ) -> Tensor:
        """`function` of `tokens`, (T, D) each, and of what rows have, (R, D) each: it is given runs, (rows, length, D) and (rows, 1, D)."""
        if (
            len(self.runs) == 1
        ):  # as for an image alone, where slices that take everything cost a hundredth of the tick
            shape = self.runs[0].num_rows, self.runs[0].length, -1
            return function(
                *(each.view(shape) for each in tokens), *(each.unsqueeze(1) for each in of_rows)
            ).flatten(0, 1)
        return torch.cat(
            [
                function(
                    *(run.batch(each) for each in tokens), *(each[run.rows, None] for each in of_rows)
                ).flatten(0, 1)
                for run in self.runs
            ]
        )


def cut_alike(layouts: Sequence[Layout]) -> list[tuple[RowRun, ...]]:
    """Runs of rows that are of one length in every one of `layouts`, which have as many rows: (run in each of them), in order."""
    pieces: list[tuple[RowRun, ...]] = []
    row, tokens = 0, [0] * len(layouts)
    for lengths, equal in groupby(zip(*(layout.lengths for layout in layouts), strict=True)):
        count = len(list(equal))
        rows = slice(row, row + count)
        ends = [start + count * length for start, length in zip(tokens, lengths, strict=True)]
        pieces.append(
            tuple(
                RowRun(rows, slice(*span), length)
                for span, length in zip(zip(tokens, ends, strict=True), lengths, strict=True)
            )
        )
        row, tokens = rows.stop, ends
    return pieces
