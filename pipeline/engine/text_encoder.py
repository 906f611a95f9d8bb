"""Text to states, with the same bits for a text in any batch.

Shapes: L text tokens, D width, P width of the pooled text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safelight.pipeline.params import StageCost, TextReport

if TYPE_CHECKING:
    from safelight.models.text.reading import TextTower


@dataclass(frozen=True, slots=True)
class TextStates:
    """What the text encoder makes of one text."""

    states: Tensor  # (L, D) float32
    mask: Tensor  # (L,): True where a state counts
    pooled: Tensor | None  # (P,), where the model's family has it
    report: TextReport
    cost: StageCost

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (self.states, self.mask, self.pooled) if tensor is not None)


class TextEncoder:
    """A text tower. Texts that arrive together run one by one at one fixed shape.

    In a batch, a text's bits would depend on its place: threads divide the rows among themselves, and kernels
    round differently at the edges of a thread's share.
    One text uses a device well enough: a tower's shape has many tokens, and it runs once a text.
    """

    max_batch = 8

    def __init__(self, tower: TextTower):
        self._tower = tower

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[TextStates]:
        """The states of at most `max_batch` texts, which may be empty strings.

        Raises `ValueError` for more texts, and `safelight.models.text.reading.UnreadableText` for a text that
        the model's family cannot read.
        """
        if len(texts) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} texts at a time, got {len(texts)}")
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> TextStates:
        started = time.perf_counter()
        reading = self._tower.read(text)
        cost = StageCost(time.perf_counter() - started, self._tower.flops_per_text)
        report = TextReport(
            reading.num_tokens,
            reading.truncated,
            reading.unknown_words,
            reading.prompt_syntax,
            reading.corrected_words,
        )
        return TextStates(reading.states, reading.mask, reading.pooled, report, cost)
