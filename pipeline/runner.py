"""The only caller of the denoising network: what is computed once a plan and once a text, and the forward of a tick."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import PackedNetwork, Row, Times
from pipeline.batch import Gathered, Membership
from pipeline.encoder import TextStates
from pipeline.solvers import Plan

SHORTEST = 16  # text tokens of a row, if the text has as many


@dataclass(slots=True)
class StepRunner:
    """A network on a device in a dtype; samples' state lies on the device too, in float32: the one cast is here."""

    network: PackedNetwork
    dtype: torch.dtype
    device: torch.device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width) of a latent."""
        return self.network.config.in_channels, height, width

    def updates(self, plan: Plan) -> Tensor:
        """The plan's matrices (T, 5, 7), float32."""
        return torch.tensor(plan.matrices(), dtype=torch.float64).float().to(self.device)

    @torch.inference_mode()
    def times(self, plan: Plan, size: tuple[int, int]) -> Times:
        """What the network makes of all times of a plan, for pictures of `size` (height, width).

        All at once: the shape of the products, hence their bits, depend on the plan alone.
        """
        timesteps = torch.tensor([tick.timestep for tick in plan.ticks], dtype=torch.float32, device=self.device)
        return self.network.prepare_times(timesteps, size)

    @torch.inference_mode()
    def row(self, text: TextStates, times: Times) -> Row:
        """What the network makes of one text under the times of a plan. Always computed alone, for the same reason.

        Of a masked text the end that says nothing is left off, in coarse steps: rows with as many tokens share their attention, and
        a length that a text has by itself leaves its bits alone.
        """
        length = bucket(text.mask)
        pooled = text.pooled
        if pooled is not None:  # a class is a whole number, which bfloat16 would round to another
            pooled = pooled.to(self.device, self.dtype if pooled.is_floating_point() else pooled.dtype)
        return self.network.prepare_row(text.states[:length].to(self.device, self.dtype), text.mask[:length].to(self.device), pooled, times)

    def wait(self) -> None:
        """Until the device has done what it was told, so that a clock read next means something."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def forward(self, members: Membership, states: Sequence[Gathered]) -> list[Tensor]:
        """One evaluation of the network for every row: raw predictions (rows, C, H, W) of each group, float32.

        A learned variance is dropped.
        """
        latents = [state.x[group.row_sample].to(self.dtype) for group, state in zip(members.groups, states, strict=True)]
        out = self.network.predict(latents, members.rows, members.steps)
        return [each[:, : self.network.config.in_channels].float() for each in out]


def bucket(mask: Tensor) -> int:
    """The least of 16, 32, 64, ... tokens that holds all that `mask` (L,) is True for, or L."""
    said = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
    length = SHORTEST
    while length < said:
        length *= 2
    return min(length, len(mask))
