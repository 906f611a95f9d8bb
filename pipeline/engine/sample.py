"""A sample under way: the only lasting state of the engine; a batch is a view of its samples.

Shapes: C latent channels, H x W latent pixels, T ticks of the plan.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safelight.models.device_copies import to_device
from safelight.models.networks.interface import Row, Times
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.guidance import Guide
from safelight.pipeline.diffusion.solvers import STATE, Plan
from safelight.pipeline.engine.device_clock import Mark
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
class Charged:
    """What a sample has spent of the device's time."""

    device_seconds: float = field(default=0.0, kw_only=True)  # spent so far, without those of `spans`
    # Computations for this sample alone, between two marks: their seconds are known when the device is done.
    spans: list[tuple[Mark, Mark]] = field(default_factory=list, kw_only=True)
    _charged_seconds: float = field(default=0.0, kw_only=True)  # that its caller has been charged with

    def settle(self) -> None:
        """Add the seconds of all `spans`; waits for the end of the last one."""
        for start, end in self.spans:
            self.device_seconds += end.seconds_since(start)
        self.spans.clear()

    def take_uncharged_seconds(self) -> float:
        """The device-seconds since the last call, which its caller is to be charged with."""
        seconds = self.device_seconds - self._charged_seconds
        self._charged_seconds = self.device_seconds
        return seconds


@dataclass(slots=True, eq=False)
class QueuedSample(Charged):
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
    step_index: int = 0  # as in `RunningSample`
    previews: PreviewRequest = NO_PREVIEWS


@dataclass(slots=True, eq=False)
class RunningSample(Charged):
    """One image under way. A tick changes `state`, `step_index`, `device_seconds` and `difference` only.

    `state` and `step_index` are those after the last tick whose work is queued on the device.
    """

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
    step_index: int = 0  # ticks done
    # (C, H, W): cond - uncond at the last tick that evaluated both, kept only if a later tick reuses it
    difference: Tensor | None = None
    previews: dict[int, int] = field(default_factory=dict)  # index of each by the ticks done before it
    drawn: Tensor | None = None  # (C, H, W), on the host: noise of the next tick, if it is drawn already

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
        self.draw_noise()
        if self.drawn is None:
            return None
        z, self.drawn = self.drawn, None
        return to_device(z, self.x.device)

    def draw_noise(self) -> None:
        """Draw the noise of the next tick on the host, if it adds any and it is not drawn yet."""
        if self.drawn is None and not self.is_done and self.plan.ticks[self.step_index].c != 0.0:
            draw = self.step_index + 1
            self.drawn = noise.draw(self.params.seed, self.params.image_index, draw, tuple(self.x.shape))


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
        z = to_device(noise.draw(params.seed, params.image_index, noise.START, shape), device)
        state[0] = plan.start_scale * z
    else:
        state[0] = source.at(plan.levels[0])
    return state
