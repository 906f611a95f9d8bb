"""The PixArt family's transformer as the engine runs it: rows of any size and text length in one evaluation.

The weights are those of `safelight.models.networks.dit`, the plain version.
Here one product gives queries, keys and values, one product over a text gives the keys and values of all
blocks, and the tokens of all rows form one matrix.

Shapes: R rows, T image tokens of all rows, L text tokens of a row, S text tokens of all rows, D width,
A heads, K = D / A, B blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.networks.dit import Block, DiT, Modulations
from safelight.models.networks.layers import modulate
from safelight.models.packed.attention import AttentionMetadata, PackedAttention
from safelight.models.packed.compiled import token_rows, with_min_rows
from safelight.models.packed.layers import (
    add_gated,
    fuse_layers,
    patch_weight_and_bias,
    patchify,
    unpatchify_groups,
    weight_and_bias,
)
from safelight.models.packed.layout import ByRow, Layout
from safelight.models.packed.linear import UNQUANTIZED, LayerFactory, LinearFunction, make_linear

FINAL_EPS = 1e-6
SCALES = [1, 4]  # which of a block's six modulations are scales; `1 + scale` is stored


@dataclass(frozen=True, slots=True)
class Text:
    """One text for cross-attention: its `key_values` (B, 2, L, A, K) in every block.

    Its `mask` (L,) stays on the host, which plans each batch's attention by it.
    """

    key_values: Tensor
    mask: Tensor

    @property
    def num_bytes(self) -> int:
        return self.key_values.nbytes + self.mask.nbytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text, and the modulations at every time of its plan."""

    text: Text
    modulations: Modulations

    @property
    def text_tokens(self) -> int:
        return len(self.text.mask)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of rows: their layout, their packed texts, and each row's modulations."""

    image: Layout
    by_row: ByRow  # of the image tokens
    positions: Tensor  # (T, D)
    key_values: Tensor  # of the texts, (B, 2, S, A, K), as `select_keys` leaves them
    modulations: tuple[Modulations, ...]
    self_attention: AttentionMetadata
    cross_attention: AttentionMetadata


@dataclass(frozen=True, slots=True)
class _Block:
    """The linear layers of one block."""

    to_qkv: LinearFunction
    to_out: LinearFunction
    to_text_q: LinearFunction
    to_text_out: LinearFunction
    mlp: LinearFunction
    eps: float


class PackedDiT:
    """A `DiT` with its layers fused for inference; the original loses its blocks and is useless after."""

    def __init__(self, dit: DiT, attention: PackedAttention, layers: LayerFactory = UNQUANTIZED):
        self.config = dit.config
        self.attention = attention
        self._dit = dit
        self._heads = dit.config.num_attention_heads
        self._patch = make_linear(*patch_weight_and_bias(dit.pos_embed.proj))
        self._text = make_linear(
            *fuse_layers(
                [layer for block in dit.transformer_blocks for layer in (block.attn2.to_k, block.attn2.to_v)]
            )
        )
        self._blocks = [_make_block(block, layers) for block in dit.transformer_blocks]
        self.is_compiled = layers.is_compiled
        self._steps = _Steps(
            query_key_value=layers.step(_query_key_value),
            text_query=layers.step(_text_query),
            feed_forward=layers.step(_feed_forward),
        )
        tables = torch.stack([block.scale_shift_table for block in dit.transformer_blocks])
        self._tables = tables[:, None].clone()  # (B, 1, 6, D)
        self._tables[:, :, SCALES] += 1
        self._final = make_linear(dit.proj_out.weight, dit.proj_out.bias)
        del dit.transformer_blocks

    @property
    def attention_name(self) -> str:
        return self.attention.name

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Modulations:
        """Map `timesteps` (times,), each 1000 t, to modulations for images of `size` (height, width)."""
        return self._dit.modulations(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """Prepare one text: `states` (L, caption_channels), and `mask` (L,) of the host; none is pooled."""
        key_values = torch.unflatten(
            self._text(self._dit.caption_projection(states)), 1, (len(self._blocks), 2, self._heads, -1)
        )
        return Text(key_values.permute(1, 2, 0, 3, 4).contiguous(), mask)

    def prepare_row(self, text: Text, times: Modulations) -> Row:
        """Combine a text with the `times` of a plan."""
        return Row(text, times)

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> Rows:
        """Pack R rows end to end; `shapes` are their latents' (height, width)."""
        patch = self.config.patch_size
        image = Layout(tuple((height // patch) * (width // patch) for height, width in shapes))
        text = Layout(tuple(row.text_tokens for row in rows))
        key_values = torch.cat([row.text.key_values for row in rows], dim=2)
        device, dtype = key_values.device, key_values.dtype
        masks = torch.cat([row.text.mask for row in rows])
        cross_attention = self.attention.prepare(image, text, masks, dtype, device)
        return Rows(
            image=image,
            by_row=token_rows(image, device) if self.is_compiled else image,
            positions=torch.cat([self._dit.positions(*shape, key_values)[0] for shape in shapes]),
            key_values=self.attention.select_keys(key_values, 2, cross_attention),
            modulations=tuple(row.modulations for row in rows),
            self_attention=self.attention.prepare(image, image, None, dtype, device),
            cross_attention=cross_attention,
        )

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Map latents, (rows, C, H, W) for each shape in turn, to raw predictions (rows, out_channels, H, W).

        Row r uses the time `steps[r]` of its plan.
        """
        row_steps = list(zip(rows.modulations, steps, strict=True))
        modulations = self._tables + torch.stack([m.blocks[step] for m, step in row_steps])  # (B, R, 6, D)
        if self.is_compiled:
            modulations = with_min_rows(modulations, 1)
        patch = self.config.patch_size
        x = self._patch(torch.cat([patchify(group, patch) for group in latents])) + rows.positions
        for block, modulation, key_values in zip(self._blocks, modulations, rows.key_values, strict=True):
            x = self._run_block(block, x, modulation, key_values, rows)
        final = torch.stack([m.final[step] for m, step in row_steps])  # (R, D)
        shift, scale = (self._dit.scale_shift_table[None] + final[:, None]).unbind(1)
        x = self._final(rows.image.apply_by_row(modulate, [_norm(x, FINAL_EPS)], [shift, scale]))
        return unpatchify_groups(x, latents, patch)

    def _run_block(
        self, block: _Block, x: Tensor, modulation: Tensor, key_values: Tensor, rows: Rows
    ) -> Tensor:
        """Run one block.

        Args:
            block: its layers.
            x: image tokens (T, D).
            modulation: shift, 1 + scale and gate of attention and of the feed-forward, (R, 6, D).
            key_values: keys and values of the texts in this block (2, S, A, K).
            rows: the batch.

        Returns:
            Image tokens (T, D).
        """
        by_row, steps = rows.by_row, self._steps
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(1)
        q, k, v = steps.query_key_value(block, x, shift_a, scale_a, by_row, self._heads)
        attended = self.attention(q, k, v, rows.self_attention)
        x, q = steps.text_query(block, x, attended, gate_a, by_row, self._heads)
        k, v = key_values.unbind(0)
        attended = self.attention(q, k, v, rows.cross_attention)
        return steps.feed_forward(block, x, attended, (shift_m, scale_m, gate_m), by_row)


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of a block between its attentions, as functions of tensors that may be compiled."""

    query_key_value: Callable[..., tuple[Tensor, Tensor, Tensor]]
    text_query: Callable[..., tuple[Tensor, Tensor]]
    feed_forward: Callable[..., Tensor]


def _query_key_value(
    block: _Block, x: Tensor, shift: Tensor, scale: Tensor, by_row: ByRow, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, A, K) of x (T, D), modulated by shift and 1 + scale (R, D)."""
    qkv = block.to_qkv(by_row.apply_by_row(_shift_and_scale, [_norm(x, block.eps)], [shift, scale]))
    q, k, v = torch.unflatten(qkv, 1, (3, heads, -1)).unbind(1)
    return q, k, v


def _text_query(
    block: _Block, x: Tensor, attended: Tensor, gate: Tensor, by_row: ByRow, heads: int
) -> tuple[Tensor, Tensor]:
    """x (T, D) with the output (T, A, K) of self-attention, and its queries (T, A, K) to the text."""
    x = by_row.apply_by_row(add_gated, [x, block.to_out(attended.flatten(1))], [gate])
    return x, torch.unflatten(block.to_text_q(x), 1, (heads, -1))


def _feed_forward(
    block: _Block, x: Tensor, attended: Tensor, modulation: Sequence[Tensor], by_row: ByRow
) -> Tensor:
    """x (T, D) with the output (T, A, K) of cross-attention, through the feed-forward."""
    shift, scale, gate = modulation
    x = x + block.to_text_out(attended.flatten(1))
    changed = block.mlp(by_row.apply_by_row(_shift_and_scale, [_norm(x, block.eps)], [shift, scale]))
    return by_row.apply_by_row(add_gated, [x, changed], [gate])


def _make_block(block: Block, layers: LayerFactory) -> _Block:
    """The block's layers for inference; `PackedDiT` takes its text keys, values and modulations itself."""
    attention, text_attention, mlp = block.attn1, block.attn2, block.ff
    return _Block(
        to_qkv=layers.linear(*fuse_layers([attention.to_q, attention.to_k, attention.to_v])),
        to_out=layers.linear(*weight_and_bias(attention.to_out[0])),
        to_text_q=layers.linear(*weight_and_bias(text_attention.to_q)),
        to_text_out=layers.linear(*weight_and_bias(text_attention.to_out[0])),
        mlp=layers.feed_forward(weight_and_bias(mlp.up), weight_and_bias(mlp.down)),
        eps=block.eps,
    )


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _shift_and_scale(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * scale + shift, where `scale` already includes the 1."""
    return torch.addcmul(shift, x, scale)
