"""What is asked of a denoising network, whatever its family: `Network` is the plain one, `PackedNetwork` what the engine runs.

A network's work is split by how often it must be done: once a plan (`prepare_times`), once a sample and text (`prepare_row`),
once a set of rows that run together (`collate`), and at every tick (`predict`). Small products over rows belong in
`prepare_row`, over all times of the plan at once: a row's bits then depend on its own request alone.

Shapes: T times of a plan, R rows, L text tokens, C channels, H x W latent pixels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

# What a family makes of its times, of one text under them, and of the rows that run together: frozen dataclasses of its own.
Times = Any
Rows = Any


class Row(Protocol):
    """One text under the times of a plan."""

    @property
    def text_tokens(self) -> int:
        """How many of the text's tokens take part in an evaluation."""
        ...


class Text(Protocol):
    """What a network made of one text, whatever its plan."""

    @property
    def num_bytes(self) -> int:
        """That it holds on the device."""
        ...


class NetworkConfig(Protocol):
    """What every family's configuration says."""

    @property
    def in_channels(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def is_sized(self) -> bool:
        """Whether the network is told the size of the image."""
        ...


class Network(Protocol):
    """A latent diffusion transformer. Plain networks are `torch.nn.Module`s: for training, for gradients, and as the oracle."""

    @property
    def config(self) -> Any: ...  # a NetworkConfig; each family's own type to itself

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        """`timesteps` (T,), each 1000 t, for images of `size` (height, width) in pixels."""
        ...

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Times) -> Any:
        """One text, `states` (L, D), `mask` (L,) and `pooled` (P,) where the family has one, under `times`."""
        ...

    def collate(self, rows: Sequence[Any]) -> Rows:
        """R rows side by side, on latents of one shape."""
        ...

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """Latents x (R, C, H, W) to the raw prediction (R, out_channels, H, W); row r is at time `steps[r]` of its own."""
        ...


class PackedNetwork(Protocol):
    """A network in which rows on latents of different shapes run together."""

    @property
    def config(self) -> Any: ...

    @property
    def attention_name(self) -> str:
        """The back end of its attention."""
        ...

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Times:
        """As a `Network`'s."""
        ...

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """What can be made of a text before its times are known: one text, as a `Network`'s `prepare_row` is given it."""
        ...

    def prepare_row(self, text: Text, times: Times) -> Row:
        """A text under `times`."""
        ...

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> Rows:
        """R rows, each on latents of its `shapes` (H, W); equal shapes stand together."""
        ...

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Latents, (rows, C, H, W) for each shape in turn, to raw predictions alike; row r is at time `steps[r]` of its own."""
        ...
