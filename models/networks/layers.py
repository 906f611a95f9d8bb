"""Small parts of a diffusion transformer: positions, time embedding, modulation, patches.

Shapes: B rows, C channels, H x W latent pixels, p patch, N = HW/p^2 tokens, D width, A heads, K = D / A.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.networks.config import TIME_FREQUENCIES

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class TypedModuleList(nn.ModuleList, Generic[AnyModule]):
    """A `ModuleList` whose modules are all of one class, which type checkers then know."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[AnyModule]) -> None: ...

        def __iter__(self) -> Iterator[AnyModule]: ...

        @overload
        def __getitem__(self, idx: slice) -> "TypedModuleList[AnyModule]": ...

        @overload
        def __getitem__(self, idx: int) -> AnyModule: ...

        def __getitem__(self, idx: int | slice) -> "AnyModule | TypedModuleList[AnyModule]": ...


def sincos_positions(height: int, width: int, base_size: int, interpolation_scale: float, dim: int) -> Tensor:
    """2-D sine-cosine positions; the first half of the channels encodes the column.

    Args:
        height: rows of the grid, in patches.
        width: columns of the grid, in patches.
        base_size: patches on a side at the trained resolution. A grid of another size is stretched over the
            same span (PixArt, arXiv:2310.00426).
        interpolation_scale: what the positions are divided by.
        dim: channels.

    Returns:
        Positions (height * width, dim), float32, row by row.
    """
    rows = torch.arange(height, dtype=torch.float32) / (height / base_size) / interpolation_scale
    columns = torch.arange(width, dtype=torch.float32) / (width / base_size) / interpolation_scale
    row_grid, column_grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([_sincos(column_grid.flatten(), dim // 2), _sincos(row_grid.flatten(), dim // 2)], dim=1)


def _sincos(positions: Tensor, dim: int) -> Tensor:
    omega = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
    angles = positions.double()[:, None] * omega[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def time_frequencies(timesteps: Tensor, freq_shift: int = 0) -> Tensor:
    """Sinusoidal features (B, 256), cosines first, of `timesteps` (B,) in 0..1000 (fractions allowed).

    Frequencies fall from 1 towards 1 / 10000. With `freq_shift` 1 the last one is 1 / 10000; with 0 that
    would be the one after the last.
    """
    half = TIME_FREQUENCIES // 2
    omega = torch.exp(
        -math.log(10000.0)
        * torch.arange(half, dtype=torch.float32, device=timesteps.device)
        / (half - freq_shift)
    )
    angles = timesteps.float()[:, None] * omega[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift with x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def unpatchify(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Tokens (B, N, p p C) to latents (B, C, height, width); inverse of the patch convolution's layout."""
    rows, columns = height // patch, width // patch
    grid = torch.unflatten(tokens, 1, (rows, columns))
    x = torch.unflatten(grid, 3, (patch, patch, -1))  # B h w p q C
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) to (B, A, N, K)."""
    return torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, A, N, K) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class PatchEmbed(nn.Module):
    """Latents (B, C, H, W) to tokens (B, N, D), without positions."""

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class TwoLayer(nn.Module):
    """linear_2(act(linear_1(x))): the time embedder (SiLU) and the caption projection (GELU-tanh)."""

    def __init__(self, in_features: int, width: int, activation: nn.Module):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.act = activation
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear_2(self.act(self.linear_1(x)))
        return output


class FeedForward(nn.Module):
    """D -> 4D -> D with GELU-tanh; the module names are diffusers'."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList(
            [nn.ModuleDict({"proj": nn.Linear(width, 4 * width)}), nn.Identity(), nn.Linear(4 * width, width)]
        )

    @property
    def up(self) -> nn.Linear:
        """The layer D -> 4D."""
        return cast(nn.Linear, cast(nn.ModuleDict, self.net[0])["proj"])

    @property
    def down(self) -> nn.Linear:
        """The layer 4D -> D."""
        return cast(nn.Linear, self.net[2])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return output
