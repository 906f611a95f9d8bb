"""The judge: which clean picture is nearest to a drawn one. Fixed before any result was looked at.

Distance: Euclidean between RGB pictures in [0, 1], on white, average-pooled to 32x32. The gallery is every render of
every concept in every style, held-out ones included.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.recipes.emoji.data import Dataset, Picture

POOLED = 32


@dataclass(frozen=True, slots=True)
class Oracle:
    """All clean pictures as points: `points` (P, 3 * 32 * 32)."""

    pictures: tuple[Picture, ...]
    points: Tensor

    @classmethod
    def of(cls, dataset: Dataset) -> "Oracle":
        points = [pooled(np.stack([dataset.on_background(i)])) for i in range(len(dataset.pictures))]
        return cls(dataset.pictures, torch.cat(points))

    def nearest(self, drawn: np.ndarray, num: int = 1) -> list[list[Picture]]:
        """The `num` nearest clean pictures of each drawn one (B, H, W, 3) uint8, nearest first."""
        order = torch.cdist(pooled(drawn), self.points).topk(num, largest=False).indices
        return [[self.pictures[i] for i in row] for row in order.tolist()]


def pooled(pictures: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) uint8 to points (B, 3 * 32 * 32)."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0
    return F.adaptive_avg_pool2d(x, POOLED).flatten(1)
