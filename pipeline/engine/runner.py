"""The only caller of the denoising network: its preparation of plans and texts, and the forward of a tick."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from safelight.models.device_copies import to_device
from safelight.models.networks.interface import PackedNetwork, Row, Text, Times
from safelight.pipeline.diffusion.solvers import Plan
from safelight.pipeline.engine.batch import BatchLayout, UpdateBuffers
from safelight.pipeline.engine.device_clock import DeviceClock, HostClock, clock_of
from safelight.pipeline.engine.text_encoder import TextStates

TEXT_BYTES = 128 << 20  # of texts kept on the device
MIN_TEXT_TOKENS = 16  # of a row, if the text has as many


@dataclass(slots=True)
class StepRunner:
    """A network on a device. The samples' states are float32 on it; only this class casts them to `dtype`."""

    network: PackedNetwork
    dtype: torch.dtype
    device: torch.device
    clock: DeviceClock = field(default_factory=HostClock)
    _texts: OrderedDict[bytes, Text] = field(default_factory=OrderedDict)
    _rows: WeakValueDictionary[tuple[bytes, Hashable], Row] = field(default_factory=WeakValueDictionary)

    @classmethod
    def on(cls, network: PackedNetwork, dtype: torch.dtype, device: torch.device) -> "StepRunner":
        """The runner of `network` with the clock of its `device`."""
        return cls(network, dtype, device, clock_of(device))

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a row's bits are proved to depend on the row alone.

        On a CPU they are, unless blocks are compiled. A GPU's library selects a kernel by the shape of the
        product, so on a GPU `safelight doctor` measures it.
        """
        return self.device.type == "cpu" and not self.network.is_compiled

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width) of a latent."""
        return self.network.config.in_channels, height, width

    def updates(self, plan: Plan) -> Tensor:
        """The plan's matrices (T, 5, 7), float32."""
        return to_device(torch.tensor(plan.matrices(), dtype=torch.float64).float(), self.device)

    @torch.inference_mode()
    def times(self, plan: Plan, size: tuple[int, int]) -> Times:
        """What the network prepares for a plan's times, for images of `size` (height, width) in pixels.

        Computed together, so that the shapes of the products, hence their bits, depend on the plan alone.
        """
        timesteps = torch.tensor([tick.timestep for tick in plan.ticks], dtype=torch.float32)
        return self.network.prepare_times(to_device(timesteps, self.device), size)

    @torch.inference_mode()
    def row(self, text: TextStates, times: Times, plan_key: Hashable) -> tuple[Row, bool, bool]:
        """The network's row of a text under the times of a plan.

        Each text is computed by itself, so that its bits depend on the text alone.
        A masked text is cut to `padded_length` tokens: rows of equal length share an attention call, and a
        cut that depends on the text alone does not change its bits.
        What does not depend on the times is cached for later samples with the same text.

        Args:
            text: States of the text.
            times: The plan's, from `times`.
            plan_key: Samples under way with the same key and text share the row.

        Returns:
            The row, whether the text was new, and whether the row was new.
        """
        length = padded_length(text.mask)
        states, mask, pooled = text.states[:length], text.mask[:length], text.pooled
        key = _digest(states, mask, pooled)
        prepared = self._texts.get(key)
        is_new_text = prepared is None
        if prepared is None:
            if pooled is not None:  # class labels are integers, which bfloat16 would round to other labels
                dtype = self.dtype if pooled.is_floating_point() else pooled.dtype
                pooled = to_device(pooled, self.device, dtype)
            prepared = self.network.prepare_text(to_device(states, self.device, self.dtype), mask, pooled)
        self._keep_text(key, prepared)
        if (row := self._rows.get((key, plan_key))) is not None:
            return row, is_new_text, False
        self._rows[key, plan_key] = row = self.network.prepare_row(prepared, times)
        return row, is_new_text, True

    def _keep_text(self, key: bytes, text: Text) -> None:
        """Cache a text as the most recently used one, within TEXT_BYTES."""
        self._texts[key] = text
        self._texts.move_to_end(key)
        while sum(cached.num_bytes for cached in self._texts.values()) > TEXT_BYTES and len(self._texts) > 1:
            self._texts.popitem(last=False)

    def wait(self) -> None:
        """Wait until the device has finished, so that a clock measures its work."""
        self.clock.mark().wait()

    def release_memory(self) -> None:
        """Give memory that is kept for later allocations, but not in use, back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def forward(self, layout: BatchLayout, buffers: Sequence[UpdateBuffers]) -> list[Tensor]:
        """Evaluate the network on every row: predictions (R, C, H, W) of each group, float32.

        A learned variance is dropped.
        """
        latents = [
            group_buffers.x[group.row_sample].to(self.dtype)
            for group, group_buffers in zip(layout.groups, buffers, strict=True)
        ]
        outputs = self.network.predict(latents, layout.rows, layout.steps)
        return [out[:, : self.network.config.in_channels].float() for out in outputs]


def padded_length(mask: Tensor) -> int:
    """The smallest of 16, 32, 64, ... tokens that covers every True of `mask` (L,), but at most L."""
    num_needed = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
    length = MIN_TEXT_TOKENS
    while length < num_needed:
        length *= 2
    return min(length, len(mask))


def _digest(*tensors: Tensor | None) -> bytes:
    """A hash of the tensors' bytes."""
    digest = blake2b()
    for tensor in tensors:
        digest.update(b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(b"|")
    return digest.digest()
