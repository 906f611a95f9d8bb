"""How rows of different lengths are packed end to end.

Linear layers and norms take the tokens of all rows as one matrix. Attention and modulation differ by row and
work on runs: adjacent rows of equal length form a dense batch without a copy.

Shapes: R rows, T tokens of all rows, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowRun:
    """Adjacent rows of `length` tokens each."""

    rows: slice
    tokens: slice
    length: int

    @property
    def num_rows(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def batch(self, x: Tensor) -> Tensor:
        """The run's tokens of x (T, ...), as (rows, length, ...)."""
        return x[self.tokens].view(self.num_rows, self.length, *x.shape[1:])


@dataclass(frozen=True)
class Layout:
    """The number of tokens of each row, in packing order."""

    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def runs(self) -> tuple[RowRun, ...]:
        """The runs of equal lengths, in order."""
        runs: list[RowRun] = []
        row = token = 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            runs.append(RowRun(slice(row, row + count), slice(token, token + count * length), length))
            row, token = row + count, token + count * length
        return tuple(runs)

    def apply_by_row(
        self, function: Callable[..., Tensor], tokens: Sequence[Tensor], row_values: Sequence[Tensor]
    ) -> Tensor:
        """Apply an elementwise `function` of tokens and of values that a whole row shares.

        `tokens` are (T, D) each, `row_values` (R, D) each. The function is called for each run with tensors
        (rows, length, D) and (rows, 1, D). Returns (T, D).
        """
        # A batch of one run needs no slices: for a single image they would cost a hundredth of the tick.
        if len(self.runs) == 1:
            shape = self.runs[0].num_rows, self.runs[0].length, -1
            return function(
                *(x.view(shape) for x in tokens), *(value.unsqueeze(1) for value in row_values)
            ).flatten(0, 1)
        return torch.cat(
            [
                function(
                    *(run.batch(x) for x in tokens), *(value[run.rows, None] for value in row_values)
                ).flatten(0, 1)
                for run in self.runs
            ]
        )


class ByRow(Protocol):
    """What elementwise steps need of the rows: `Layout`, or a form of it for compiled steps."""

    def apply_by_row(
        self, function: Callable[..., Tensor], tokens: Sequence[Tensor], row_values: Sequence[Tensor]
    ) -> Tensor:
        """As `Layout.apply_by_row`."""
        ...


def common_runs(layouts: Sequence[Layout]) -> list[tuple[RowRun, ...]]:
    """Split the rows into runs whose lengths are equal in every layout.

    All layouts have the same number of rows.
    Returns one tuple for each run, with its `RowRun` in each layout.
    """
    runs: list[tuple[RowRun, ...]] = []
    row, starts = 0, [0] * len(layouts)
    for lengths, group in groupby(zip(*(layout.lengths for layout in layouts), strict=True)):
        count = len(list(group))
        rows = slice(row, row + count)
        ends = [start + count * length for start, length in zip(starts, lengths, strict=True)]
        runs.append(
            tuple(
                RowRun(rows, slice(start, end), length)
                for start, end, length in zip(starts, ends, lengths, strict=True)
            )
        )
        row, starts = rows.stop, ends
    return runs
