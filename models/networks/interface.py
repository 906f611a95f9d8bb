"""The interface of a denoising network: `Network` for the plain form, `PackedNetwork` for the engine's.

A network's work is split by how often it must be done: once a plan (`prepare_times`), once a sample and text
(`prepare_row`), once a batch of rows (`collate`), and at every tick (`predict`).
Small products over rows belong in `prepare_row`, for all times of the plan at once: a row's bits then depend
on its own request alone.

Shapes: T times of a plan, R rows, L text tokens, C channels, H x W latent pixels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

# The prepared times of a plan, and rows that run together: frozen dataclasses of each family.
Times = Any
Rows = Any


class Row(Protocol):
    """One text at the times of a plan."""

    @property
    def text_tokens(self) -> int:
        """Text tokens that take part in an evaluation."""
        ...


class Text(Protocol):
    """One text prepared by a network, for any plan."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds on the device."""
        ...


class NetworkConfig(Protocol):
    """The options that every family's configuration has."""

    @property
    def in_channels(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def is_sized(self) -> bool:
        """Whether the network reads the size of the image."""
        ...


class Network(Protocol):
    """The plain form of a latent diffusion transformer: a `torch.nn.Module`, for training and as oracle."""

    @property
    def config(self) -> Any: ...  # a NetworkConfig, of the family's own class

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        """`timesteps` (T,), each 1000 t, for images of `size` (height, width) in pixels."""
        ...

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Times) -> Any:
        """One text at `times`: `states` (L, D), `mask` (L,), and `pooled` (P,) in families that have one."""
        ...

    def collate(self, rows: Sequence[Any]) -> Rows:
        """R rows side by side, on latents of one shape."""
        ...

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """Latents x (R, C, H, W) to the raw prediction (R, out_channels, H, W).

        Row r is at time `steps[r]` of its plan.
        """
        ...


class PackedNetwork(Protocol):
    """A network that evaluates rows on latents of different shapes together."""

    @property
    def config(self) -> Any: ...

    @property
    def attention_name(self) -> str:
        """Name of the attention back end."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether its blocks are compiled; a row's bits may then depend on the other rows."""
        ...

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        """`timesteps` (T,), each 1000 t, for images of `size` (height, width) in pixels."""
        ...

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """The part of `prepare_row` that does not depend on the times; shapes as in `Network.prepare_row`.

        `mask` is on the host, the others on the network's device.
        """
        ...

    def prepare_row(self, text: Any, times: Times) -> Row:
        """One `text`, of this network's `prepare_text`, at `times`."""
        ...

    def collate(self, rows: Sequence[Any], shapes: Sequence[tuple[int, int]]) -> Rows:
        """R rows side by side, row r on latents of `shapes[r]` (H, W); equal shapes must be adjacent."""
        ...

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Latents, (rows, C, H, W) for each shape in turn, to raw predictions in the same arrangement.

        Row r is at time `steps[r]` of its plan.
        """
        ...
