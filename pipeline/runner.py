"""The only caller of the denoising network: what is computed once a request, and the forward of a tick."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dit import DiT, Modulations, TextKeyValues
from pipeline.batch import Gathered, Membership
from pipeline.encoder import TextStates
from pipeline.solvers import Plan


@dataclass(slots=True)
class StepRunner:
    """A DiT on a device in a dtype; samples' state lies on the device too, in float32: the one cast is here."""

    dit: DiT
    dtype: torch.dtype
    device: torch.device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width) of a latent."""
        return self.dit.config.in_channels, height, width

    def updates(self, plan: Plan) -> Tensor:
        """The plan's matrices (T, 5, 7), float32."""
        return torch.tensor(plan.matrices(), dtype=torch.float64).float().to(self.device)

    @torch.inference_mode()
    def modulations(self, plan: Plan, size: tuple[int, int]) -> Modulations:
        """Modulations of all times of a plan, for pictures of `size` (height, width).

        One GEMM a plan: its shape, hence its bits, depend on the plan alone.
        """
        times = torch.tensor([tick.timestep for tick in plan.ticks], dtype=torch.float32, device=self.device)
        return self.dit.modulations(times, size)

    @torch.inference_mode()
    def text_key_values(self, text: TextStates) -> TextKeyValues:
        """Keys and values (one row) of every block. Always computed alone, for the same reason."""
        return self.dit.text_key_values(text.states[None].to(self.device, self.dtype), text.mask[None].to(self.device))

    def wait(self) -> None:
        """Until the device has done what it was told, so that a clock read next means something."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def forward(self, members: Membership, state: Gathered) -> Tensor:
        """One network evaluation for every row: raw predictions (R, C, H, W), float32; a learned variance is dropped."""
        rows = state.x[members.row_sample].to(self.dtype)
        out: Tensor = self.dit(rows, state.modulations, members.text)
        return out[:, : self.dit.config.in_channels].float()
