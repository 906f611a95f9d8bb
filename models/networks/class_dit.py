"""The class-conditional DiT (Peebles & Xie 2023, arXiv:2212.09748), adaLN-Zero, split where its work repeats.

Nothing of time and class depends on the image, so that every modulation of a sample is computed once, for all times of its
plan (`prepare_row`); `forward` is then self-attention and MLPs alone. The state dict is that of diffusers'
`DiTTransformer2DModel`, in which every block has embedders of its own where the paper has one set for all.

Shapes: B rows, T times of a plan, C channels, H x W latent pixels, N image tokens, D width.
M = (6 blocks + 2) D modulations: every block's six, side by side, then the last norm's shift and scale.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.options import Depth, Positive, checked, refuse_unknown, require
from safelight.models.networks.attention import BACKENDS, Attention
from safelight.models.networks.dit import SelfAttention
from safelight.models.networks.layers import (
    TIME_FREQUENCIES,
    FeedForward,
    PatchEmbed,
    TwoLayer,
    modulate,
    sincos_positions,
    time_frequencies,
    unpatchify,
)

NORM_EPS = 1e-6  # of the norms before attention and before the output, whatever `norm_eps` says
FREQ_SHIFT = 1  # diffusers' here; PixArt's and the authors' own code have 0

# options that are built with one value only, diffusers' default; `attention_type` is said in old folders alone
BUILT = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "attention_bias": True,
    "upcast_attention": False, "attention_type": "default",
}  # fmt: skip
IGNORED = {"dropout", "norm_num_groups"}  # means nothing to this network at inference


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One class under the times of a plan: all `modulations` (T, M)."""

    modulations: Tensor
    text_tokens = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: each row's modulations over its own plan."""

    modulations: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class ClassDiTConfig:
    """The options of diffusers' `DiTTransformer2DModel`, by its names and with its defaults."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 4  # twice `in_channels` where the variance is learned
    num_layers: Depth = 28
    sample_size: int = 32  # latent pixels on a side; with patch_size, the scale of the positions
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000  # classes; the index after the last is the null class
    norm_eps: Positive = 1e-5  # of the norm before the MLP

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def is_sized(self) -> bool:
        """Whether the network is told the size of the image."""
        return False

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> "ClassDiTConfig":
        """Read the `config.json` of a `DiTTransformer2DModel`; raise `CheckpointError` naming what is not built."""
        known = {field.name for field in fields(cls)}
        refuse_unknown(config, known | BUILT.keys() | IGNORED)
        require(config, BUILT)
        options = {key: value for key, value in config.items() if key in known}
        if options.get("out_channels") is None:
            options["out_channels"] = options.get("in_channels", 4)
        if not options.get("num_embeds_ada_norm", True):
            raise CheckpointError("num_embeds_ada_norm is missing, only models with classes are supported")
        return checked(cls, options)

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that makes diffusers build the same network."""
        return {"_class_name": "DiTTransformer2DModel", **asdict(self)}


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
        return self.emb["timestep_embedder"](frequencies.to(self.linear.weight.dtype))

    def conditioning(self, times: Tensor, class_index: Tensor) -> Tensor:
        """Embedded `times` (T, D) and a class (1,) to (T, D), through the SiLU with which adaLN begins."""
        return F.silu(times + self.emb["class_embedder"]["embedding_table"](class_index))


class Block(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, config: ClassDiTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.norm1 = AdaLNZero(config)
        self.attn1 = SelfAttention(config.width, config.num_attention_heads)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, modulation: Tensor, attention: Attention) -> Tensor:
        """Tokens x (B, N, D) moved on; `modulation` (B, 6 D) is what the linear layer of `norm1` gave."""
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
        self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self._positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        """Every block's embedding (blocks, T, D) of `timesteps` (T,), each 1000 t; this family is not told the image's `size`."""
        frequencies = time_frequencies(timesteps, FREQ_SHIFT)
        return torch.stack([block.norm1.embedded_times(frequencies) for block in self.transformer_blocks])

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Tensor) -> Row:
        """The class whose index is `pooled` (1,), an integer, under `times`; this family reads no `states`.

        Raises `ValueError` without an index, or with one in floating point.
        """
        if pooled is None or pooled.is_floating_point():  # bfloat16 would make another class of most
            raise ValueError("this network reads a class index, an integer")
        norms = [block.norm1 for block in self.transformer_blocks]
        conditionings = [norm.conditioning(own, pooled) for norm, own in zip(norms, times, strict=True)]
        of_blocks = [
            norm.linear(conditioning) for norm, conditioning in zip(norms, conditionings, strict=True)
        ]
        return Row(
            torch.cat([*of_blocks, self.proj_out_1(conditionings[0])], dim=1)
        )  # the last norm asks the first block's embedders

    def collate(self, rows: Sequence[Row]) -> Rows:
        """`rows` side by side."""
        return Rows(tuple(row.modulations for row in rows))

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """`forward` with row r at time `steps[r]` of its plan."""
        return self(x, torch.stack([m[step] for m, step in zip(rows.modulations, steps, strict=True)]))

    def forward(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Latents x (B, C, H, W) and `modulations` (B, M) to the raw prediction (B, out_channels, H, W), a learned variance last."""
        height, width = x.shape[-2:]
        tokens = self.pos_embed(x) + self.positions(height, width, x)
        *of_blocks, shift, scale = modulations.split(
            [6 * self.config.width] * self.config.num_layers + [self.config.width] * 2, dim=1
        )
        for block, own in zip(self.transformer_blocks, of_blocks, strict=True):
            tokens = block(tokens, own, self.attention)
        tokens = modulate(_norm(tokens, NORM_EPS), shift[:, None], scale[:, None])
        return unpatchify(self.proj_out_2(tokens), height, width, self.config.patch_size)

    def positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """Positions (1, N, D) of a latent of `height` x `width`, on the device and in the dtype of `like`; computed once for each.

        Another size than `sample_size` is stretched over the same span.
        """
        key = (height, width, like.device, like.dtype)
        if key not in self._positions:
            patch, base = self.config.patch_size, self.config.sample_size // self.config.patch_size
            self._positions[key] = sincos_positions(
                height // patch, width // patch, base, 1.0, self.config.width
            )[None].to(like)
        return self._positions[key]


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)
