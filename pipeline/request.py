"""A sample under way: the only lasting truth of the engine. Batches are views of these, rebuilt every tick.

Shapes: C latent channels, H x W latent pixels, T ticks of the plan.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.dit import Modulations, TextKeyValues
from pipeline import noise
from pipeline.params import GenerationParams
from pipeline.solvers import RING, Plan


@dataclass(slots=True)
class Spent:
    """What a sample has used so far; the engine adds its share of every tick."""

    ticks: int = 0
    rows: int = 0
    tokens: int = 0
    flops: int = 0
    device_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Sample:
    """One picture under way. Set once by `start`: everything but the last five fields, which every tick moves on."""

    request_id: str
    params: GenerationParams
    plan: Plan
    coefficients: Tensor  # (T, 16) float32: the plan's table
    modulations: Modulations  # blocks (T, 6, D), final (T, D)
    texts: tuple[TextKeyValues, ...]  # one or two rows: cond, uncond; a row alone stands for both
    queue_seconds: float
    x: Tensor  # (C, H, W) float32
    y: Tensor  # (C, H, W)
    ring: Tensor  # (3, C, H, W), newest first
    step_index: int = 0  # ticks done; the one number of progress
    spent: Spent = field(default_factory=Spent)

    @property
    def is_done(self) -> bool:
        return self.step_index == len(self.plan.ticks)

    @property
    def num_rows(self) -> int:
        return len(self.texts)

    def noise(self) -> Tensor | None:
        """The noise z that this tick adds, or None if it adds none."""
        if self.plan.ticks[self.step_index].c == 0.0:
            return None
        z = noise.draw(self.params.seed, self.params.image_index, self.step_index + 1, tuple(self.x.shape))
        return z.to(self.x.device)


def start_state(params: GenerationParams, plan: Plan, shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the ring of a sample before its first tick."""
    x = plan.start_scale * noise.draw(params.seed, params.image_index, noise.START, shape).to(device)
    return x, torch.zeros_like(x), x.new_zeros(RING, *shape)
