"""The diffusion transformer of the PixArt family, in parts that run once a text, once a plan and every tick.

What does not change between ticks is computed once and passed in: the text's keys and values of every block
(`text_key_values`) and the modulations of every time of a plan (`modulations`). `forward` is the rest.
The state dict is that of diffusers' `PixArtTransformer2DModel`.

Shapes: B rows, C channels, H x W latent pixels, N image tokens, L text tokens, D width, A heads, K = D / A.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.device_copies import to_device
from safelight.models.networks.attention import BACKENDS, Attention
from safelight.models.networks.config import TIME_FREQUENCIES, DiTConfig
from safelight.models.networks.layers import (
    FeedForward,
    PatchEmbed,
    TwoLayer,
    TypedModuleList,
    merge_heads,
    modulate,
    sincos_positions,
    split_heads,
    time_frequencies,
    unpatchify,
)


@dataclass(frozen=True, slots=True)
class Modulations:
    """adaLN-single's output for a time: `blocks` (B, 6, D), and `final` (B, D) for the last norm."""

    blocks: Tensor
    final: Tensor


@dataclass(frozen=True, slots=True)
class TextKeyValues:
    """Every block's keys and values: `kv` (blocks, 2, B, A, L, K) with `mask` (B, L), True = attend."""

    kv: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text, and the modulations of every time of its plan."""

    text: TextKeyValues
    modulations: Modulations


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: their texts side by side, each with the modulations of its own plan."""

    text: TextKeyValues
    modulations: tuple[Modulations, ...]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; module names are diffusers'."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = TypedModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        output: Tensor = self.to_out[0](merge_heads(attention(q, k, v)))
        return output


class CrossAttention(nn.Module):
    """Attention of image tokens to text tokens, whose keys and values are computed beforehand."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = TypedModuleList([nn.Linear(width, width)])

    def key_values(self, text: Tensor) -> Tensor:
        """Projected caption (B, L, D) to (2, B, A, L, K)."""
        return torch.stack(
            [split_heads(self.to_k(text), self.heads), split_heads(self.to_v(text), self.heads)]
        )

    def forward(self, x: Tensor, kv: Tensor, mask: Tensor, attention: Attention) -> Tensor:
        q = split_heads(self.to_q(x), self.heads)
        output: Tensor = self.to_out[0](merge_heads(attention(q, kv[0], kv[1], mask)))
        return output


class Block(nn.Module):
    """Self-attention, cross-attention and MLP.

    adaLN-single adds the block's `scale_shift_table` to a modulation that all blocks share.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = SelfAttention(config.width, config.num_attention_heads)
        self.attn2 = CrossAttention(config.width, config.num_attention_heads)
        self.ff = FeedForward(config.width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, config.width))

    def forward(
        self, x: Tensor, modulation: Tensor, kv: Tensor, mask: Tensor, attention: Attention
    ) -> Tensor:
        """Run the block.

        Args:
            x: image tokens (B, N, D).
            modulation: the modulation that all blocks share (B, 6, D).
            kv: keys and values of the text in this block (2, B, A, L, K).
            mask: text tokens to attend to (B, L).
            attention: the back end.

        Returns:
            Image tokens (B, N, D).
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            (self.scale_shift_table[None] + modulation).unsqueeze(2).unbind(1)
        )
        x = torch.addcmul(x, gate_a, self.attn1(modulate(self._norm(x), shift_a, scale_a), attention))
        x = x + self.attn2(x, kv, mask, attention)
        return torch.addcmul(x, gate_m, self.ff(modulate(self._norm(x), shift_m, scale_m)))

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class AdaLNSingle(nn.Module):
    """Time, and the image's size if the network `is_sized`, to one shared modulation (PixArt section 2.3)."""

    def __init__(self, width: int, is_sized: bool):
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TwoLayer(TIME_FREQUENCIES, width, nn.SiLU())})
        if is_sized:
            self.emb["resolution_embedder"] = TwoLayer(TIME_FREQUENCIES, width // 3, nn.SiLU())
            self.emb["aspect_ratio_embedder"] = TwoLayer(TIME_FREQUENCIES, width // 3, nn.SiLU())
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timesteps: Tensor, size: tuple[int, int] | None) -> Modulations:
        final = self._embedded("timestep_embedder", timesteps)
        if "resolution_embedder" in self.emb:
            if size is None:
                raise ValueError("this network needs the size of the image")
            height, width = size
            # Filled, not copied from the host, which would wait for the device.
            sides = torch.cat([timesteps.new_full((1,), height), timesteps.new_full((1,), width)])
            resolution = self._embedded("resolution_embedder", sides)
            aspect = self._embedded("aspect_ratio_embedder", timesteps.new_full((1,), height / width))
            final = final + torch.cat([resolution.flatten(), aspect.flatten()])
        return Modulations(torch.unflatten(self.linear(F.silu(final)), 1, (6, -1)), final)

    def _embedded(self, name: str, values: Tensor) -> Tensor:
        embedded: Tensor = self.emb[name](time_frequencies(values).to(self.linear.weight.dtype))
        return embedded


class DiT(nn.Module):
    """A latent diffusion transformer conditioned on time and text."""

    def __init__(self, config: DiTConfig, attention: Attention = BACKENDS["sdpa"]):
        super().__init__()
        self.config = config
        self.attention = attention
        width = config.width
        self.pos_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.adaln_single = AdaLNSingle(width, config.is_sized)
        self.caption_projection = TwoLayer(config.caption_channels, width, nn.GELU(approximate="tanh"))
        self.transformer_blocks = TypedModuleList([Block(config) for _ in range(config.num_layers)])
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self._positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def init_tables(self) -> None:
        """Initialise the adaLN tables as PixArt does, for a network whose weights are not loaded."""
        for part in (self, *self.transformer_blocks):
            nn.init.normal_(part.scale_shift_table, std=self.config.width**-0.5)

    def modulations(self, timesteps: Tensor, size: tuple[int, int] | None = None) -> Modulations:
        """Modulations of `timesteps` (B,), each 1000 t, one row a time.

        `size` is the image's (height, width) in pixels.
        Raises `ValueError` if it is None and the network reads it.
        """
        modulations: Modulations = self.adaln_single(timesteps, size)
        return modulations

    def text_key_values(self, states: Tensor, mask: Tensor) -> TextKeyValues:
        """Text `states` (B, L, caption_channels) and `mask` (B, L) to every block's keys and values."""
        text = self.caption_projection(states)
        return TextKeyValues(
            torch.stack([block.attn2.key_values(text) for block in self.transformer_blocks]), mask
        )

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Modulations:
        """The same as `modulations`, under the name in `Network`."""
        return self.modulations(timesteps, size)

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Modulations) -> Row:
        """One text at `times`: `states` (L, caption_channels) and `mask` (L,); `pooled` is not read."""
        return Row(self.text_key_values(states[None], mask[None]), times)

    def collate(self, rows: Sequence[Row]) -> Rows:
        """The texts of `rows` side by side."""
        texts = [row.text for row in rows]
        text = TextKeyValues(torch.cat([t.kv for t in texts], dim=2), torch.cat([t.mask for t in texts]))
        return Rows(text, tuple(row.modulations for row in rows))

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """`forward` with row r at time `steps[r]` of its plan."""
        current = list(zip(rows.modulations, steps, strict=True))
        blocks = torch.stack([modulations.blocks[step] for modulations, step in current])
        final = torch.stack([modulations.final[step] for modulations, step in current])
        prediction: Tensor = self(x, Modulations(blocks, final), rows.text)
        return prediction

    def forward(self, x: Tensor, modulations: Modulations, text: TextKeyValues) -> Tensor:
        """Latents x (B, C, H, W) to the raw prediction (B, out_channels, H, W).

        Row b has modulations and a text of its own.
        """
        height, width = x.shape[-2:]
        tokens = self.pos_embed(x) + self.positions(height, width, x)
        for block, kv in zip(self.transformer_blocks, text.kv, strict=True):
            tokens = block(tokens, modulations.blocks, kv, text.mask, self.attention)
        shift, scale = (self.scale_shift_table[None] + modulations.final[:, None]).unsqueeze(2).unbind(1)
        tokens = modulate(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), shift, scale)
        return unpatchify(self.proj_out(tokens), height, width, self.config.patch_size)

    def positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """Positions (1, N, D) of a latent of `height` x `width`, on the device and in the dtype of `like`.

        They are computed once for each size, device and dtype.
        """
        key = (height, width, like.device, like.dtype)
        if key not in self._positions:
            patch, config = self.config.patch_size, self.config
            grid = sincos_positions(
                height // patch,
                width // patch,
                config.sample_size // patch,
                config.interpolation_scale,
                config.width,
            )
            self._positions[key] = to_device(grid[None], like.device, like.dtype)
        return self._positions[key]
