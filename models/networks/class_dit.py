"""The class-conditional DiT with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).

Time and class do not depend on the image, so every modulation of a sample is computed once, for all times of
its plan (`prepare_row`); `forward` is self-attention and MLPs alone. The state dict is that of diffusers'
`DiTTransformer2DModel`, in which every block has its own embedders where the paper has one set for all.

Shapes: B rows, T times of a plan, C channels, H x W latent pixels, N image tokens, D width.
M = (6 blocks + 2) D modulations: every block's six, side by side, then the last norm's shift and scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.device_copies import to_device
from safelight.models.networks.attention import BACKENDS, Attention
from safelight.models.networks.config import TIME_FREQUENCIES, ClassDiTConfig
from safelight.models.networks.dit import SelfAttention
from safelight.models.networks.layers import (
    FeedForward,
    PatchEmbed,
    TwoLayer,
    TypedModuleList,
    modulate,
    sincos_positions,
    time_frequencies,
    unpatchify,
)

NORM_EPS = 1e-6  # of the norms before attention and before the output, whatever `norm_eps` says
FREQ_SHIFT = 1  # as in diffusers' class; PixArt and the authors' code use 0


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One class at the times of a plan: all `modulations` (T, M)."""

    modulations: Tensor
    text_tokens = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: each row's modulations over its own plan."""

    modulations: tuple[Tensor, ...]


class AdaLNZero(nn.Module):
    """Time and class to shift, scale and gate of a block's two branches; module names are diffusers'."""

    def __init__(self, config: ClassDiTConfig):
        super().__init__()
        width = config.width
        classes = nn.Embedding(config.num_embeds_ada_norm + 1, width)
        self.emb = nn.ModuleDict(
            {
                "timestep_embedder": TwoLayer(TIME_FREQUENCIES, width, nn.SiLU()),
                "class_embedder": nn.ModuleDict({"embedding_table": classes}),
            }
        )
        self.linear = nn.Linear(width, 6 * width)

    def embedded_times(self, frequencies: Tensor) -> Tensor:
        """Time frequencies (T, 256), float32, to (T, D)."""
        times: Tensor = self.emb["timestep_embedder"](frequencies.to(self.linear.weight.dtype))
        return times

    def conditioning(self, times: Tensor, class_index: Tensor) -> Tensor:
        """Embedded `times` (T, D) and a class (1,) to (T, D); adaLN's leading SiLU is applied."""
        embedder = cast(nn.ModuleDict, self.emb["class_embedder"])
        return F.silu(times + embedder["embedding_table"](class_index))


class Block(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, config: ClassDiTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.norm1 = AdaLNZero(config)
        self.attn1 = SelfAttention(config.width, config.num_attention_heads)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, modulation: Tensor, attention: Attention) -> Tensor:
        """The tokens x (B, N, D) after this block; `modulation` (B, 6 D) is the output of `norm1.linear`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate_a, self.attn1(modulate(_norm(x, NORM_EPS), shift_a, scale_a), attention))
        return torch.addcmul(x, gate_m, self.ff(modulate(_norm(x, self.eps), shift_m, scale_m)))


class ClassDiT(nn.Module):
    """A latent diffusion transformer conditioned on time and class."""

    def __init__(self, config: ClassDiTConfig, attention: Attention = BACKENDS["sdpa"]):
        super().__init__()
        self.config = config
        self.attention = attention
        width = config.width
        self.pos_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.transformer_blocks = TypedModuleList([Block(config) for _ in range(config.num_layers)])
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self._positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        """Every block's embedding (blocks, T, D) of `timesteps` (T,), each 1000 t; `size` is not read."""
        frequencies = time_frequencies(timesteps, FREQ_SHIFT)
        return torch.stack([block.norm1.embedded_times(frequencies) for block in self.transformer_blocks])

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Tensor) -> Row:
        """The class with the integer index `pooled` (1,), at `times`; this family reads no `states`.

        Raises `ValueError` without an index, or with one in floating point.
        """
        if pooled is None or pooled.is_floating_point():  # bfloat16 would round most indices to others
            raise ValueError("this network reads a class index, an integer")
        norms = [block.norm1 for block in self.transformer_blocks]
        conditionings = [
            norm.conditioning(embedded, pooled) for norm, embedded in zip(norms, times, strict=True)
        ]
        by_block = [
            norm.linear(conditioning) for norm, conditioning in zip(norms, conditionings, strict=True)
        ]
        # The last norm uses the first block's embedders.
        return Row(torch.cat([*by_block, self.proj_out_1(conditionings[0])], dim=1))

    def collate(self, rows: Sequence[Row]) -> Rows:
        """`rows` side by side."""
        return Rows(tuple(row.modulations for row in rows))

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """`forward` with row r at time `steps[r]` of its plan."""
        current = [modulations[step] for modulations, step in zip(rows.modulations, steps, strict=True)]
        prediction: Tensor = self(x, torch.stack(current))
        return prediction

    def forward(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Latents x (B, C, H, W) and `modulations` (B, M) to the raw prediction (B, out_channels, H, W).

        A learned variance is in the last channels.
        """
        height, width = x.shape[-2:]
        tokens = self.pos_embed(x) + self.positions(height, width, x)
        widths = [6 * self.config.width] * self.config.num_layers + [self.config.width] * 2
        *by_block, shift, scale = torch.split(modulations, widths, dim=1)
        for block, modulation in zip(self.transformer_blocks, by_block, strict=True):
            tokens = block(tokens, modulation, self.attention)
        tokens = modulate(_norm(tokens, NORM_EPS), shift[:, None], scale[:, None])
        return unpatchify(self.proj_out_2(tokens), height, width, self.config.patch_size)

    def positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """Positions (1, N, D) of a latent of `height` x `width`, on the device and in the dtype of `like`.

        A size other than `sample_size` is stretched over the same span. Positions are computed once for each
        size, device and dtype.
        """
        key = (height, width, like.device, like.dtype)
        if key not in self._positions:
            patch, base = self.config.patch_size, self.config.sample_size // self.config.patch_size
            grid = sincos_positions(height // patch, width // patch, base, 1.0, self.config.width)
            self._positions[key] = to_device(grid[None], like.device, like.dtype)
        return self._positions[key]


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)
