"""A plain network as what the engine runs: an evaluation for each shape of latents in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from safelight.models.networks.interface import Network, Row, Rows, Times


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it came."""

    states: Tensor
    mask: Tensor
    pooled: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.states, self.mask, self.pooled) if tensor is not None)


@dataclass(frozen=True, slots=True)
class PerShapeNetwork:
    """For families whose rows are not packed end to end."""

    network: Network

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def attention_name(self) -> str:
        return "sdpa"

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        return self.network.prepare_times(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        return Text(states, mask, pooled)

    def prepare_row(self, text: Text, times: Times) -> Row:
        row: Row = self.network.prepare_row(text.states, text.mask, text.pooled, times)
        return row

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> tuple[Rows, ...]:
        """Rows for each shape in turn; equal shapes must stand together."""
        waiting = iter(rows)
        return tuple(self.network.collate([next(waiting) for _ in equal]) for _, equal in groupby(shapes))

    def predict(
        self, latents: Sequence[Tensor], rows: tuple[Rows, ...], steps: Sequence[int]
    ) -> list[Tensor]:
        """Latents, (rows, C, H, W) for each shape in turn, to raw predictions alike."""
        waiting = iter(steps)
        return [
            self.network.predict(x, own, [next(waiting) for _ in x])
            for x, own in zip(latents, rows, strict=True)
        ]
