"""Text to states, many at a time, the same bits for a text in any batch.

Shapes: B texts, L text tokens, D width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.text import ClipTextTower
from pipeline.params import StageCost, TextReport

FIXED_BATCH = 8


@dataclass(frozen=True, slots=True)
class TextStates:
    """What the text encoder says of one text: `states` (L, D) float32, `mask` (L,), True where a state says something."""

    states: Tensor
    mask: Tensor
    report: TextReport
    cost: StageCost


class TextEncoder:
    """The text tower, always run on batches of one fixed shape: short batches are padded, so no text sees its neighbours."""

    max_batch = FIXED_BATCH

    def __init__(self, tower: ClipTextTower):
        self._tower = tower
        self._flops_per_text = _count_flops(tower)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[TextStates]:
        """States of at most `max_batch` texts; an empty text is a text. Raises `ValueError` over that."""
        if len(texts) > self.max_batch:
            raise ValueError(f"at most {self.max_batch} texts at a time, got {len(texts)}")
        started = time.perf_counter()
        tokenised = [self._tower.tokenise(text) for text in texts]
        ids = torch.stack([t.ids for t in tokenised] + [tokenised[0].ids] * (self.max_batch - len(texts)))
        states, mask = self._tower(ids)
        cost = StageCost((time.perf_counter() - started) / len(texts), self._flops_per_text)
        reports = [TextReport(t.num_tokens, t.truncated, t.unknown_words) for t in tokenised]
        return [TextStates(states[i].clone(), mask[i].clone(), report, cost) for i, report in enumerate(reports)]


def _count_flops(tower: ClipTextTower) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(tower.tokenise("").ids[None])
    return int(counter.get_total_flops())
