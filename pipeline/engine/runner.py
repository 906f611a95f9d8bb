"""The only caller of the denoising network: what is computed once a plan and once a text, and the forward of a tick."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from safelight.models.networks.interface import PackedNetwork, Row, Text, Times
from safelight.pipeline.diffusion.solvers import Plan
from safelight.pipeline.engine.batch import BatchLayout, UpdateBuffers
from safelight.pipeline.engine.text_encoder import TextStates

TEXT_BYTES = 128 << 20  # of texts kept on the device
SHORTEST = 16  # text tokens of a row, if the text has as many


@dataclass(slots=True)
class StepRunner:
    """A network on a device in a dtype; samples' state lies on the device too, in float32: the one cast is here."""

    network: PackedNetwork
    dtype: torch.dtype
    device: torch.device
    _texts: OrderedDict[bytes, Text] = field(default_factory=OrderedDict)
    _rows: WeakValueDictionary[tuple[bytes, Hashable], Row] = field(default_factory=WeakValueDictionary)

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a row's bits were proved to depend on the row alone: on processors. A GPU's library picks a product's kernel by
        its shape, and nobody tried (`safelight doctor` does)."""
        return self.device.type == "cpu"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width) of a latent."""
        return self.network.config.in_channels, height, width

    def updates(self, plan: Plan) -> Tensor:
        """The plan's matrices (T, 5, 7), float32."""
        return torch.tensor(plan.matrices(), dtype=torch.float64).float().to(self.device)

    @torch.inference_mode()
    def times(self, plan: Plan, size: tuple[int, int]) -> Times:
        """What the network makes of all times of a plan, for images of `size` (height, width).

        All at once: the shape of the products, hence their bits, depend on the plan alone.
        """
        timesteps = torch.tensor(
            [tick.timestep for tick in plan.ticks], dtype=torch.float32, device=self.device
        )
        return self.network.prepare_times(timesteps, size)

    @torch.inference_mode()
    def row(self, text: TextStates, times: Times, plan: Hashable) -> tuple[Row, bool, bool]:
        """What the network makes of one text under the `times` of a plan, whether the text was new, and whether the two together were.

        Always computed alone, for the same reason. `plan` stands for the times: samples under way that share it and the text
        share the row.

        Of a masked text the end that says nothing is left off, in coarse steps: rows with as many tokens share their attention, and
        a length that a text has by itself leaves its bits alone. What does not depend on the times is kept for the next sample
        with this text, as the empty one is for nearly all.
        """
        length = bucket(text.mask)
        states, mask, pooled = text.states[:length], text.mask[:length], text.pooled
        key = _digest(states, mask, pooled)
        is_new = (known := self._texts.get(key)) is None
        if known is None:
            if pooled is not None:  # a class is a whole number, which bfloat16 would round to another
                pooled = pooled.to(self.device, self.dtype if pooled.is_floating_point() else pooled.dtype)
            known = self.network.prepare_text(
                states.to(self.device, self.dtype), mask.to(self.device), pooled
            )
        self._remember(key, known)
        if (row := self._rows.get((key, plan))) is not None:
            return row, is_new, False
        self._rows[key, plan] = row = self.network.prepare_row(known, times)
        return row, is_new, True

    def _remember(self, key: bytes, text: Text) -> None:
        self._texts[key] = text
        self._texts.move_to_end(key)
        while sum(each.num_bytes for each in self._texts.values()) > TEXT_BYTES and len(self._texts) > 1:
            self._texts.popitem(last=False)

    def wait(self) -> None:
        """Until the device has done what it was told, so that a clock read next means something."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def forward(self, members: BatchLayout, states: Sequence[UpdateBuffers]) -> list[Tensor]:
        """One evaluation of the network for every row: raw predictions (rows, C, H, W) of each group, float32.

        A learned variance is dropped.
        """
        latents = [
            state.x[group.row_sample].to(self.dtype)
            for group, state in zip(members.groups, states, strict=True)
        ]
        out = self.network.predict(latents, members.rows, members.steps)
        return [each[:, : self.network.config.in_channels].float() for each in out]


def bucket(mask: Tensor) -> int:
    """The least of 16, 32, 64, ... tokens that holds all that `mask` (L,) is True for, or L."""
    said = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
    length = SHORTEST
    while length < said:
        length *= 2
    return min(length, len(mask))


def _digest(*tensors: Tensor | None) -> bytes:
    """The same for the same text alone."""
    digest = blake2b()
    for tensor in tensors:
        digest.update(b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(b"|")
    return digest.digest()
