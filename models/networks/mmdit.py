"""The MMDiT of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).

Image and text tokens are two streams with weights of their own that meet in one attention.
The text tokens change from block to block, so only two things can be computed once a request: the text's
projection (`text_tokens`) and the modulations by its pooled vector at every time of its plan (`modulations`).
There is no text mask: these networks were trained to attend to padding too.
The state dict is that of diffusers' `SD3Transformer2DModel`.

Shapes: B rows, C channels, H x W latent pixels, N image tokens, L text tokens, D width, A heads, K = D / A,
T times of a plan, M modulation channels of all blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.networks.attention import BACKENDS, Attention
from safelight.models.networks.config import TIME_FREQUENCIES, MMDiTConfig
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

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text at the times of a plan: tokens (1, L, D) for the first block, and all `modulations` (T, M)."""

    text: Tensor
    modulations: Tensor

    @property
    def text_tokens(self) -> int:
        return self.text.shape[1]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: text tokens (R, L, D), and each row's modulations over its own plan."""

    text: Tensor
    modulations: tuple[Tensor, ...]


class PositionedPatchEmbed(PatchEmbed):
    """Latents to tokens with positions, which are cut from the middle of a square table in the checkpoint."""

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig):
        super().__init__(config.in_channels, config.width, config.patch_size)
        self.patch, self.side = config.patch_size, config.pos_embed_max_size
        table = sincos_positions(
            self.side, self.side, config.sample_size // config.patch_size, 1.0, config.width
        )
        self.register_buffer("pos_embed", table[None])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.positions(*x.shape[-2:]).to(x)

    def positions(self, height: int, width: int) -> Tensor:
        """Positions (1, N, D) of a latent of `height` x `width`.

        Raises `ValueError` if the latent is not whole patches or is larger than the table.
        """
        rows, columns = height // self.patch, width // self.patch
        if (rows * self.patch, columns * self.patch) != (height, width) or max(rows, columns) > self.side:
            raise ValueError(
                f"a latent of {height} x {width} is not whole patches of {self.patch}, "
                f"at most {self.side} on a side"
            )
        min_row, min_column = (self.side - rows) // 2, (self.side - columns) // 2
        table = torch.unflatten(self.pos_embed, 1, (self.side, self.side))
        return table[:, min_row : min_row + rows, min_column : min_column + columns].flatten(1, 2)


class ImageAttention(nn.Module):
    """The image's side of an attention: projections with biases, and an optional norm of queries and keys.

    The module names are diffusers'.
    """

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q, self.norm_k = _head_norm(config), _head_norm(config)
        self.to_out = TypedModuleList([nn.Linear(width, width)])

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens (B, N, D) to queries, keys and values (B, A, N, K)."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class SelfAttention(ImageAttention):
    """Multi-head attention of the image tokens to themselves."""

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        output: Tensor = self.to_out[0](merge_heads(attention(*self.query_key_value(x))))
        return output


class JointAttention(ImageAttention):
    """One attention over image and text tokens; each stream has its own projections and norms."""

    def __init__(self, config: MMDiTConfig, is_last: bool):
        super().__init__(config)
        width = config.width
        self.add_q_proj = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(width, width)
        self.add_v_proj = nn.Linear(width, width)
        self.norm_added_q, self.norm_added_k = _head_norm(config), _head_norm(config)
        self.to_add_out: nn.Identity | nn.Linear = nn.Identity() if is_last else nn.Linear(width, width)

    def text_query_key_value(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text tokens (B, L, D) to queries, keys and values (B, A, L, K)."""
        q, k, v = (
            split_heads(project(text), self.heads)
            for project in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        return self.norm_added_q(q), self.norm_added_k(k), v

    def forward(self, x: Tensor, text: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
        """Image tokens x (B, N, D) and text (B, L, D) to both streams' branch outputs, in the same shapes.

        The last block does not use the text's output.
        """
        streams = zip(self.query_key_value(x), self.text_query_key_value(text), strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in streams)
        joint = merge_heads(attention(q, k, v))
        image, context = torch.split(joint, [x.shape[1], text.shape[1]], dim=1)
        return self.to_out[0](image), self.to_add_out(context)


class AdaLN(nn.Module):
    """Conditioning (B, D) to `parts` modulations (B, D): shift, scale and gate of each branch in turn."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def split(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Split the output of `linear`, (B, parts D), into its parts, (B, 1, D) each."""
        return modulation[:, None].chunk(self.parts, dim=2)


class FinalAdaLN(AdaLN):
    """Shift and scale of a stream's last norm, which the checkpoint stores in the opposite order."""

    def __init__(self, width: int):
        super().__init__(width, 2)

    def split(self, modulation: Tensor) -> tuple[Tensor, ...]:
        scale, shift = super().split(modulation)
        return shift, scale


class Block(nn.Module):
    """Joint attention, and an MLP for each stream.

    The last block drops the text; in a dual block the image also attends to itself alone.
    """

    def __init__(self, config: MMDiTConfig, is_last: bool, is_dual: bool):
        super().__init__()
        width = config.width
        self.norm1 = AdaLN(width, 9 if is_dual else 6)
        self.norm1_context = FinalAdaLN(width) if is_last else AdaLN(width, 6)
        self.attn = JointAttention(config, is_last)
        self.attn2 = SelfAttention(config) if is_dual else None
        self.ff = FeedForward(width)
        self.ff_context = None if is_last else FeedForward(width)

    def forward(
        self, x: Tensor, text: Tensor, modulation: Tensor, text_modulation: Tensor, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """Run the block; the last one returns the text unchanged.

        Args:
            x: image tokens (B, N, D).
            text: text tokens (B, L, D).
            modulation: the output of `norm1.linear` (B, 6 D), or (B, 9 D) in a dual block.
            text_modulation: the output of `norm1_context.linear` (B, 6 D), or (B, 2 D) in the last block.
            attention: the back end.

        Returns:
            Image tokens (B, N, D) and text tokens (B, L, D).
        """
        shift, scale, gate, *after = self.norm1.split(modulation)
        text_shift, text_scale, *text_after = self.norm1_context.split(text_modulation)
        normed = norm(x)
        image_part, text_part = self.attn(
            modulate(normed, shift, scale), modulate(norm(text), text_shift, text_scale), attention
        )
        x = torch.addcmul(x, gate, image_part)
        if self.attn2 is not None:
            shift, scale, gate = after[3:]
            x = torch.addcmul(x, gate, self.attn2(modulate(normed, shift, scale), attention))
        x = _feed_forward(self.ff, x, *after[:3])
        if self.ff_context is not None:
            text_gate, *mlp = text_after
            text = _feed_forward(self.ff_context, torch.addcmul(text, text_gate, text_part), *mlp)
        return x, text


class MMDiT(nn.Module):
    """A latent diffusion transformer conditioned on time, pooled text and text tokens."""

    def __init__(self, config: MMDiTConfig, attention: Attention = BACKENDS["sdpa"]):
        super().__init__()
        self.config = config
        self.attention = attention
        width, last = config.width, config.num_layers - 1
        self.pos_embed = PositionedPatchEmbed(config)
        self.time_text_embed = nn.ModuleDict(
            {
                "timestep_embedder": TwoLayer(TIME_FREQUENCIES, width, nn.SiLU()),
                "text_embedder": TwoLayer(config.pooled_projection_dim, width, nn.SiLU()),
            }
        )
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.transformer_blocks = TypedModuleList(
            [
                Block(config, is_last=i == last, is_dual=i in config.dual_attention_layers)
                for i in range(config.num_layers)
            ]
        )
        self.norm_out = FinalAdaLN(width)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        """Embedded `timesteps` (T,), each 1000 t, as (T, D); this family does not read the image's `size`."""
        embedder = cast(TwoLayer, self.time_text_embed["timestep_embedder"])
        times: Tensor = embedder(time_frequencies(timesteps).to(embedder.linear_1.weight.dtype))
        return times

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Tensor) -> Row:
        """One text, `states` (L, joint_attention_dim) and `pooled` (pooled_projection_dim,), at `times`.

        `mask` is not read. Raises `ValueError` without `pooled`.
        """
        if pooled is None:
            raise ValueError("this network reads the pooled text as well")
        return Row(self.text_tokens(states[None]), self.modulations(self.conditioning(times, pooled[None])))

    def collate(self, rows: Sequence[Row]) -> Rows:
        """The texts of `rows` side by side."""
        return Rows(torch.cat([row.text for row in rows]), tuple(row.modulations for row in rows))

    def predict(self, x: Tensor, rows: Rows, steps: Sequence[int]) -> Tensor:
        """`forward` with row r at time `steps[r]` of its plan."""
        current = [modulations[step] for modulations, step in zip(rows.modulations, steps, strict=True)]
        prediction: Tensor = self(x, torch.stack(current), rows.text)
        return prediction

    def conditioning(self, times: Tensor, pooled: Tensor) -> Tensor:
        """Conditioning (B, D) of embedded `times` (B, D) and `pooled` text (B or 1, pooled_projection_dim).

        The SiLU with which every adaLN begins is already applied.
        """
        return F.silu(times + self.time_text_embed["text_embedder"](pooled))

    def modulations(self, conditioning: Tensor) -> Tensor:
        """The modulations (B, M) of all adaLN layers, side by side, for `conditioning` (B, D)."""
        return torch.cat([norm.linear(conditioning) for norm in self.norms()], dim=1)

    def text_tokens(self, states: Tensor) -> Tensor:
        """Text `states` (B, L, joint_attention_dim) to text tokens (B, L, D) for the first block."""
        tokens: Tensor = self.context_embedder(states)
        return tokens

    def forward(self, x: Tensor, modulations: Tensor, text: Tensor) -> Tensor:
        """Latents x (B, C, H, W) to the raw prediction (B, out_channels, H, W).

        `modulations` (B, M) and `text` (B, L, D) are those of each row.
        Raises `ValueError` if H or W is not whole patches or is larger than the position table.
        """
        height, width = x.shape[-2:]
        tokens = self.pos_embed(x)
        widths = [norm.linear.out_features for norm in self.norms()]
        *by_block, final = torch.split(modulations, widths, dim=1)
        for block, image_modulation, text_modulation in zip(
            self.transformer_blocks, by_block[::2], by_block[1::2], strict=True
        ):
            tokens, text = block(tokens, text, image_modulation, text_modulation, self.attention)
        shift, scale = self.norm_out.split(final)
        return unpatchify(
            self.proj_out(modulate(norm(tokens), shift, scale)), height, width, self.config.patch_size
        )

    def norms(self) -> list[AdaLN]:
        """Every adaLN, in the order of `modulations`."""
        norms = [norm for block in self.transformer_blocks for norm in (block.norm1, block.norm1_context)]
        return [*norms, self.norm_out]


def _head_norm(config: MMDiTConfig) -> nn.Module:
    return nn.Identity() if config.qk_norm is None else nn.RMSNorm(config.attention_head_dim, eps=NORM_EPS)


def norm(x: Tensor) -> Tensor:
    """Layer norm of x (..., D) over channels, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def _feed_forward(ff: FeedForward, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate, ff(modulate(norm(x), shift, scale)))
