"""A sample under way: the only lasting truth of the engine. Batches are views of these, rebuilt every tick.

Shapes: C latent channels, H x W latent pixels, T ticks of the plan.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safelight.models.networks.interface import Row, Times
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.guidance import Guide
from safelight.pipeline.diffusion.solvers import STATE, Plan
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.workload import SampleWorkload


@dataclass(slots=True)
class UsageSoFar:
    """What a sample has used so far; the engine adds its share of every tick."""

    ticks: int = 0
    rows: int = 0
    tokens: int = 0
    flops: int = 0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What all samples with the same solver and steps share, on the device; `key` says which."""

    key: Hashable
    plan: Plan
    updates: Tensor  # (T, 5, 7) float32: the plan's matrices
    times: Times


@dataclass(frozen=True, slots=True, eq=False)
class QueuedSample:
    """A sample that has not begun: nothing of its own lies on the device yet, however many wait."""

    request_id: str
    params: GenerationParams
    prepared: DevicePlan
    guides: tuple[Guide, ...]  # the guidance in effect at each tick
    cond: TextStates | None  # None where no tick needs it
    uncond: TextStates | None
    workload: SampleWorkload
    spent: UsageSoFar
    step_index: int = 0


@dataclass(slots=True, eq=False)
class RunningSample:
    """One image under way. Every tick moves on the last four fields; the others are set before the first."""

    request_id: str
    params: GenerationParams
    plan: Plan
    updates: Tensor  # (T, 5, 7) float32: the plan's matrices
    guides: tuple[Guide, ...]  # the guidance in effect at each tick
    cond: Row | None  # what the network made of the texts under the plan
    uncond: Row | None
    workload: SampleWorkload
    queue_seconds: float
    state: Tensor  # (5, C, H, W) float32: x, y and the ring
    step_index: int = 0  # ticks done; the one number of progress
    spent: UsageSoFar = field(default_factory=UsageSoFar)
    difference: Tensor | None = (
        None  # (C, H, W), between the two predictions of the last tick that evaluated both; only if a later one reuses it
    )

    @property
    def x(self) -> Tensor:
        """(C, H, W)."""
        return self.state[0]

    @property
    def is_done(self) -> bool:
        return self.step_index == len(self.plan.ticks)

    @property
    def guide(self) -> Guide:
        """The guidance of this tick."""
        return self.guides[self.step_index]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of this tick: cond, uncond, or the one that is needed, which then stands for both."""
        return tuple(
            row
            for row, is_needed in zip((self.cond, self.uncond), self.guide.rows, strict=True)
            if is_needed and row is not None
        )

    def noise(self) -> Tensor | None:
        """The noise z that this tick adds, or None if it adds none."""
        if self.plan.ticks[self.step_index].c == 0.0:
            return None
        z = noise.draw(self.params.seed, self.params.image_index, self.step_index + 1, tuple(self.x.shape))
        return z.to(self.x.device)


def start_state(
    params: GenerationParams, plan: Plan, shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """The state (5, C, H, W) of a sample before its first tick."""
    state = torch.zeros(len(STATE), *shape, device=device)
    state[0] = plan.start_scale * noise.draw(params.seed, params.image_index, noise.START, shape).to(device)
    return state
