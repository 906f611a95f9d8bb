"""The PixArt family's transformer as the engine runs it: rows of any sizes and text lengths in one evaluation.

The same weights as `safelight.models.networks.dit`, which stays the plain version: queries, keys and values from one product, the keys and values of
all blocks from one product over a text, tokens of all rows in one matrix.

Shapes: R rows, T image tokens of all rows, L text tokens of a row, S of all rows, D width, A heads, K = D / A, B blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.networks.dit import Block, DiT, Modulations
from safelight.models.networks.layers import modulate
from safelight.models.packed.attention import AttentionMetadata, PackedAttention
from safelight.models.packed.layers import gated, joined, parameters, patches, unpatched
from safelight.models.packed.layout import Layout
from safelight.models.packed.linear import UNQUANTIZED, Layers, LinearFunction, make_linear

SCALES = [1, 4]  # of a block's six modulations; `1 + scale` is stored


@dataclass(frozen=True, slots=True)
class Text:
    """One text as every block attends to it: `key_values` (B, 2, L, A, K) with its `mask` (L,)."""

    key_values: Tensor
    mask: Tensor

    @property
    def num_bytes(self) -> int:
        return self.key_values.nbytes + self.mask.nbytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text, and the modulations of every time of its plan."""

    text: Text
    modulations: Modulations

    @property
    def text_tokens(self) -> int:
        return len(self.text.mask)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: how their tokens lie, their texts end to end, (B, 2, S, A, K), and each one's modulations."""

    image: Layout
    positions: Tensor  # (T, D)
    key_values: Tensor
    modulations: tuple[Modulations, ...]
    to_itself: AttentionMetadata
    to_text: AttentionMetadata


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's products."""

    to_qkv: LinearFunction
    to_out: LinearFunction
    to_text_q: LinearFunction
    to_text_out: LinearFunction
    mlp: LinearFunction
    eps: float


class PackedDiT:
    """A `DiT` made ready to run; the network given is taken apart and must not be used any more."""

    def __init__(self, dit: DiT, attention: PackedAttention, layers: Layers = UNQUANTIZED):
        self.config = dit.config
        self.attention = attention
        self._dit = dit
        self._heads = dit.config.num_attention_heads
        self._patch = make_linear(dit.pos_embed.proj.weight.flatten(1), dit.pos_embed.proj.bias)
        self._text = make_linear(
            *joined([p for block in dit.transformer_blocks for p in (block.attn2.to_k, block.attn2.to_v)])
        )
        self._blocks = [_pack(block, layers) for block in dit.transformer_blocks]
        self._tables = torch.stack([block.scale_shift_table for block in dit.transformer_blocks])[
            :, None
        ].clone()  # (B, 1, 6, D)
        self._tables[:, :, SCALES] += 1
        self._final = make_linear(dit.proj_out.weight, dit.proj_out.bias)
        del dit.transformer_blocks

    @property
    def attention_name(self) -> str:
        return self.attention.name

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Modulations:
        """`timesteps` (T,), each 1000 t, for images of `size` (height, width) in pixels, to modulations."""
        return self._dit.modulations(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """One text, `states` (L, caption_channels) and `mask` (L,); this family has no pooled text."""
        key_values = self._text(self._dit.caption_projection(states)).unflatten(
            1, (len(self._blocks), 2, self._heads, -1)
        )
        return Text(key_values.permute(1, 2, 0, 3, 4).contiguous(), mask)

    def prepare_row(self, text: Text, times: Modulations) -> Row:
        """A text under the `times` of a plan."""
        return Row(text, times)

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> Rows:
        """R rows end to end, each on latents of its `shapes` (height, width)."""
        patch = self.config.patch_size
        image = Layout(tuple((height // patch) * (width // patch) for height, width in shapes))
        text = Layout(tuple(row.text_tokens for row in rows))
        key_values = torch.cat([row.text.key_values for row in rows], dim=2)
        masks = torch.cat([row.text.mask for row in rows])
        return Rows(
            image=image,
            positions=torch.cat([self._dit.positions(*shape, key_values)[0] for shape in shapes]),
            key_values=key_values,
            modulations=tuple(row.modulations for row in rows),
            to_itself=self.attention.plan(image, image, None, key_values.dtype),
            to_text=self.attention.plan(image, text, masks, key_values.dtype),
        )

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Latents, (rows, C, H, W) for each shape in turn, to raw predictions (rows, out_channels, H, W); row r is at `steps[r]`."""
        now = list(zip(rows.modulations, steps, strict=True))
        modulations = self._tables + torch.stack([m.blocks[step] for m, step in now])  # (B, R, 6, D)
        patch = self.config.patch_size
        x = self._patch(torch.cat([patches(each, patch) for each in latents])) + rows.positions
        for block, modulation, key_values in zip(self._blocks, modulations, rows.key_values, strict=True):
            x = self._move(block, x, modulation, key_values, rows)
        shift, scale = (
            self._dit.scale_shift_table[None] + torch.stack([m.final[step] for m, step in now])[:, None]
        ).unbind(1)
        x = self._final(
            rows.image.by_row(modulate, [F.layer_norm(x, x.shape[-1:], eps=1e-6)], [shift, scale])
        )
        return unpatched(x, latents, patch)

    def _move(self, block: _Block, x: Tensor, modulation: Tensor, key_values: Tensor, rows: Rows) -> Tensor:
        """One block: x (T, D) moved on under `modulation` (R, 6, D) and the text's keys and values (2, S, A, K)."""
        by_row = rows.image.by_row
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(1)
        q, k, v = (
            block.to_qkv(by_row(_scaled, [_norm(x, block.eps)], [shift_a, scale_a]))
            .unflatten(1, (3, self._heads, -1))
            .unbind(1)
        )
        attended = block.to_out(self.attention(q, k, v, rows.to_itself).flatten(1))
        x = by_row(gated, [x, attended], [gate_a])
        q = block.to_text_q(x).unflatten(1, (self._heads, -1))
        x = x + block.to_text_out(self.attention(q, *key_values, rows.to_text).flatten(1))
        changed = block.mlp(by_row(_scaled, [_norm(x, block.eps)], [shift_m, scale_m]))
        return by_row(gated, [x, changed], [gate_m])


def _pack(block: Block, layers: Layers) -> _Block:
    own, text, mlp = block.attn1, block.attn2, block.ff.net
    return _Block(
        to_qkv=layers.linear(*joined([own.to_q, own.to_k, own.to_v])),
        to_out=layers.linear(*parameters(own.to_out[0])),
        to_text_q=layers.linear(*parameters(text.to_q)),
        to_text_out=layers.linear(*parameters(text.to_out[0])),
        mlp=layers.feed_forward(parameters(mlp[0]["proj"]), parameters(mlp[2])),
        eps=block.eps,
    )


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _scaled(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, scale)
