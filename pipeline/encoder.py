"""Text to states, many at a time, the same bits for a text in any batch.

Shapes: B texts, L text tokens, D width.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.params import StageCost, TextReport

if TYPE_CHECKING:
    from models.text import ClipTextTower


@dataclass(frozen=True, slots=True)
class TextStates:
    """What the text encoder says of one text: `states` (L, D) float32, `mask` (L,), True where a state says something."""

    states: Tensor
    mask: Tensor
    report: TextReport
    cost: StageCost


class TextEncoder:
    """The text tower. Texts that arrive together run one by one at one fixed shape.

    In a batch a text's bits depend on where in it the text stands: threads share out the rows, and the kernels of a
    share's edge round differently. The tower is small, so the shape that is the same for all costs little.
    """

    max_batch = 8

    def __init__(self, tower: ClipTextTower):
        self._tower = tower
        self._flops_per_text = _count_flops(tower)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[TextStates]:
        """States of at most `max_batch` texts; an empty text is a text. Raises `ValueError` over that."""
        if len(texts) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} texts at a time, got {len(texts)}")
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> TextStates:
        started = time.perf_counter()
        tokenised = self._tower.tokenise(text)
        states, mask = self._tower(tokenised.ids[None])
        cost = StageCost(time.perf_counter() - started, self._flops_per_text)
        report = TextReport(tokenised.num_tokens, tokenised.truncated, tokenised.unknown_words)
        return TextStates(states[0], mask[0], report, cost)


def _count_flops(tower: ClipTextTower) -> int:
    shadow = copy.deepcopy(tower).to("meta")  # on a processor the counter takes attention for free
    ids = torch.empty(1, tower.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(ids)
    return int(counter.get_total_flops())
