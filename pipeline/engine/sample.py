"""A sample under way: the only lasting state of the engine; a batch is a view of its samples.

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
from safelight.pipeline.engine.source_latents import NoisedSource, SourceLatents
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import NO_PREVIEWS, GenerationParams, PreviewRequest
from safelight.pipeline.scheduling.workload import SampleWorkload


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A plan on the device, which all samples with the same solver, steps and size share under `key`."""

    key: Hashable
    plan: Plan
    updates: Tensor  # (T, 5, 7) float32: the plan's matrices
    times: Times


@dataclass(slots=True, eq=False)
class QueuedSample:
    """A sample that has not started. It has no tensors on the device yet, so any number may wait."""

    request_id: str
    params: GenerationParams
    plan: DevicePlan
    guides: tuple[Guide, ...]  # the guidance of each tick
    cond: TextStates | None  # None if no tick needs it
    uncond: TextStates | None
    workload: SampleWorkload
    setup_flops: int  # of preparing the plan's times and the texts that this sample is the first to need
    source: SourceLatents | None = None  # of an edit
    device_seconds: float = 0.0  # spent so far
    step_index: int = 0  # as in `RunningSample`
    previews: PreviewRequest = NO_PREVIEWS


@dataclass(slots=True, eq=False)
class RunningSample:
    """One image under way. A tick changes `state`, `step_index`, `device_seconds` and `difference` only."""

    request_id: str
    params: GenerationParams
    plan: Plan
    updates: Tensor  # (T, 5, 7) float32: the plan's matrices
    guides: tuple[Guide, ...]  # the guidance of each tick
    cond: Row | None  # what the network made of the texts under the plan
    uncond: Row | None
    workload: SampleWorkload
    queue_seconds: float
    state: Tensor  # (5, C, H, W) float32: x, y and the ring
    source: NoisedSource | None = None  # of an edit
    setup_flops: int = 0
    device_seconds: float = 0.0  # spent so far
    step_index: int = 0  # ticks done
    # (C, H, W): cond - uncond at the last tick that evaluated both, kept only if a later tick reuses it
    difference: Tensor | None = None
    previews: dict[int, int] = field(default_factory=dict)  # index of each by the ticks done before it

    @property
    def x(self) -> Tensor:
        """The latents (C, H, W)."""
        return self.state[0]

    @property
    def is_done(self) -> bool:
        return self.step_index == len(self.plan.ticks)

    @property
    def guide(self) -> Guide:
        """The guidance of the next tick."""
        return self.guides[self.step_index]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The network rows of the next tick: cond and uncond, or the only one that it needs."""
        return tuple(
            row
            for row, is_needed in zip((self.cond, self.uncond), self.guide.rows, strict=True)
            if is_needed and row is not None
        )

    def noise(self) -> Tensor | None:
        """The noise z (C, H, W) that the next tick adds, or None if it adds none."""
        if self.plan.ticks[self.step_index].c == 0.0:
            return None
        z = noise.draw(self.params.seed, self.params.image_index, self.step_index + 1, tuple(self.x.shape))
        return z.to(self.x.device)


def start_state(
    params: GenerationParams,
    plan: Plan,
    shape: tuple[int, int, int],
    device: torch.device,
    source: NoisedSource | None = None,
) -> Tensor:
    """The state (5, C, H, W) of a sample before its first tick.

    Args:
        params: The image.
        plan: Its plan.
        shape: (C, H, W) of its latents.
        device: Where it runs.
        source: What an edit starts from. An edit that takes all steps starts from noise, as any other image.
    """
    state = torch.zeros(len(STATE), *shape, device=device)
    if source is None or plan.ticks[0].t == 1.0:
        z = noise.draw(params.seed, params.image_index, noise.START, shape).to(device)
        state[0] = plan.start_scale * z
    else:
        state[0] = source.at(plan.levels[0])
    return state
