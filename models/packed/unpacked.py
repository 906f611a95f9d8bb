"""Adapter that lets the engine run a plain network.

On a GPU there is one evaluation for each shape of latents. On a processor there is one for each row: a
library picks the order of a sum by the number of rows, so in a larger batch a row would have other bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from safelight.models.device_copies import to_device
from safelight.models.networks.interface import Network, Row, Rows, Times


@dataclass(frozen=True, slots=True)
class Text:
    """An encoded text, unchanged: `states` (L, D), `mask` (L,) and, where the tower has it, `pooled` (P,)."""

    states: Tensor
    mask: Tensor
    pooled: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.states, self.mask, self.pooled) if tensor is not None)


@dataclass(frozen=True, slots=True)
class PerShapeNetwork:
    """A network whose rows are not packed: each shape of latents is evaluated on its own.

    Attributes:
        network: the plain network.
        is_row_by_row: whether each row is, too.
        is_compiled: whether its blocks are compiled.
    """

    network: Network
    is_row_by_row: bool
    is_compiled: bool = False

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def attention_name(self) -> str:
        return "sdpa"

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        return self.network.prepare_times(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        return Text(states, to_device(mask, states.device), pooled)

    def prepare_row(self, text: Text, times: Times) -> Row:
        row: Row = self.network.prepare_row(text.states, text.mask, text.pooled, times)
        return row

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> tuple[tuple[Rows, ...], ...]:
        """The evaluations of each shape in turn; rows of equal shape must be adjacent."""
        remaining = iter(rows)
        groups = [[next(remaining) for _ in group] for _, group in groupby(shapes)]
        if self.is_row_by_row:
            return tuple(tuple(self.network.collate([row]) for row in group) for group in groups)
        return tuple((self.network.collate(group),) for group in groups)

    def predict(
        self, latents: Sequence[Tensor], rows: tuple[tuple[Rows, ...], ...], steps: Sequence[int]
    ) -> list[Tensor]:
        """Map latents, (rows, C, H, W) for each shape in turn, to raw predictions in the same order.

        Row r uses the time `steps[r]` of its plan.
        """
        remaining = iter(steps)
        predictions = []
        for x, evaluations in zip(latents, rows, strict=True):
            parts = zip(torch.split(x, len(x) // len(evaluations)), evaluations, strict=True)
            predictions.append(
                torch.cat(
                    [self.network.predict(part, row, [next(remaining) for _ in part]) for part, row in parts]
                )
            )
        return predictions
