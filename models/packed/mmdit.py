"""The MMDiT of Stable Diffusion 3 and 3.5 as the engine runs it: rows of any sizes in one evaluation.

The same weights as `safelight.models.networks.mmdit`, which stays the plain version: queries, keys and values of a stream from one product, tokens of
all rows in one matrix, each row's image and text tokens side by side in one attention.

Shapes: R rows, T image tokens of all rows, L text tokens of a row, S = R L, J = T + S, D width, A heads, K = D / A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.models.networks.layers import FeedForward, modulate
from safelight.models.networks.mmdit import AdaLN, Block, MMDiT, SelfAttention, norm
from safelight.models.packed.attention import AttentionMetadata, PackedAttention
from safelight.models.packed.layers import gated, joined, parameters, patches, unpatched
from safelight.models.packed.layout import Layout, RowRun, cut_alike
from safelight.models.packed.linear import UNQUANTIZED, Layers, LinearFunction, make_linear


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens (L, D) that enter the first block, and the pooled text (1, P)."""

    tokens: Tensor
    pooled: Tensor

    @property
    def num_bytes(self) -> int:
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text, and what every adaLN makes of it at every time of its plan: `modulations` (times, M)."""

    text: Text
    modulations: Tensor

    @property
    def text_tokens(self) -> int:
        return len(self.text.tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that run together: how their tokens lie, their texts end to end (S, D), and each one's modulations."""

    image: Layout
    text: Layout
    positions: Tensor  # (T, D)
    tokens: Tensor
    modulations: tuple[Tensor, ...]
    pieces: tuple[tuple[RowRun, ...], ...]  # (image, text) runs of rows that are alike in both
    to_both: AttentionMetadata
    to_image: AttentionMetadata | None  # of the dual blocks


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream's products around an attention, with the norms of its queries and keys."""

    to_qkv: LinearFunction
    to_out: LinearFunction | None
    norm_q: nn.Module
    norm_k: nn.Module

    def query_key_value(self, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (T, D) to queries, keys and values (T, A, K)."""
        q, k, v = self.to_qkv(x).unflatten(1, (3, heads, -1)).unbind(1)
        return self.norm_q(q), self.norm_k(k), v


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's products; `norms` split what its adaLN made."""

    norms: tuple[AdaLN, AdaLN]
    image: _Stream
    text: _Stream
    alone: _Stream | None  # the image's attention to itself
    image_mlp: LinearFunction
    text_mlp: LinearFunction | None


class PackedMMDiT:
    """An `MMDiT` made ready to run; the network given is taken apart and must not be used any more."""

    def __init__(self, mmdit: MMDiT, attention: PackedAttention, layers: Layers = UNQUANTIZED):
        self.config = mmdit.config
        self.attention = attention
        self._heads = mmdit.config.num_attention_heads
        self._mmdit = mmdit
        self._adaln = make_linear(*joined([each.linear for each in mmdit.norms()]))
        self._widths = [each.linear.out_features for each in mmdit.norms()]
        self._patch = make_linear(mmdit.pos_embed.proj.weight.flatten(1), mmdit.pos_embed.proj.bias)
        self._blocks = [_pack(block, layers) for block in mmdit.transformer_blocks]
        self._final = make_linear(*parameters(mmdit.proj_out))
        for each in mmdit.norms():
            del each.linear
        del mmdit.transformer_blocks

    @property
    def attention_name(self) -> str:
        return self.attention.name

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        """As the plain network's: (times, D)."""
        return self._mmdit.prepare_times(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """One text, `states` (L, joint_attention_dim) and `pooled` (P,); nothing is masked."""
        if pooled is None:
            raise ValueError("this network reads the pooled text as well")
        return Text(self._mmdit.text_tokens(states[None])[0], pooled[None])

    def prepare_row(self, text: Text, times: Tensor) -> Row:
        """A text under the `times` of a plan."""
        return Row(text, self._adaln(self._mmdit.conditioning(times, text.pooled)))

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> Rows:
        """R rows end to end, each on latents of its `shapes` (height, width)."""
        patch = self.config.patch_size
        image = Layout(tuple((height // patch) * (width // patch) for height, width in shapes))
        text = Layout(tuple(row.text_tokens for row in rows))
        tokens = torch.cat([row.text.tokens for row in rows])
        both = Layout(tuple(map(sum, zip(image.lengths, text.lengths, strict=True))))
        has_duals = any(block.alone for block in self._blocks)
        return Rows(
            image=image,
            text=text,
            positions=torch.cat([self._mmdit.pos_embed.positions(*shape)[0] for shape in shapes]).to(
                tokens.dtype
            ),
            tokens=tokens,
            modulations=tuple(row.modulations for row in rows),
            pieces=tuple(cut_alike((image, text))),
            to_both=self.attention.plan(both, both, None, tokens.dtype),
            to_image=self.attention.plan(image, image, None, tokens.dtype) if has_duals else None,
        )

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Latents, (rows, C, H, W) for each shape in turn, to raw predictions (rows, out_channels, H, W); row r is at `steps[r]`."""
        patch = self.config.patch_size
        modulations = torch.stack([m[step] for m, step in zip(rows.modulations, steps, strict=True)])
        *of_blocks, final = modulations.split(self._widths, dim=1)
        x, text = (
            self._patch(torch.cat([patches(each, patch) for each in latents])) + rows.positions,
            rows.tokens,
        )
        for block, own, of_text in zip(self._blocks, of_blocks[::2], of_blocks[1::2], strict=True):
            x, text = self._move(
                block, x, text, _split(block.norms[0], own), _split(block.norms[1], of_text), rows
            )
        shift, scale = _split(self._mmdit.norm_out, final)
        x = self._final(rows.image.by_row(modulate, [norm(x)], [shift, scale]))
        return unpatched(x, latents, patch)

    def _move(
        self,
        block: _Block,
        x: Tensor,
        text: Tensor,
        modulation: Sequence[Tensor],
        of_text: Sequence[Tensor],
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """One block: image tokens x (T, D) and text tokens (S, D), both moved on; each part of a modulation is (R, D)."""
        by_row, by_text = rows.image.by_row, rows.text.by_row
        shift, scale, gate, *after = modulation
        text_shift, text_scale, *text_after = of_text
        normed = norm(x)
        of_image = block.image.query_key_value(by_row(modulate, [normed], [shift, scale]), self._heads)
        of_words = block.text.query_key_value(
            by_text(modulate, [norm(text)], [text_shift, text_scale]), self._heads
        )
        q, k, v = (_side_by_side(*pair, rows.pieces) for pair in zip(of_image, of_words, strict=True))
        of_image_tokens, of_text_tokens = _parted(
            self.attention(q, k, v, rows.to_both).flatten(1), rows.pieces
        )
        assert block.image.to_out is not None
        x = by_row(gated, [x, block.image.to_out(of_image_tokens)], [gate])
        if block.alone is not None:
            assert block.alone.to_out is not None
            shift, scale, gate = after[3:]
            alone = self.attention(
                *block.alone.query_key_value(by_row(modulate, [normed], [shift, scale]), self._heads),
                rows.to_image,
            )
            x = by_row(gated, [x, block.alone.to_out(alone.flatten(1))], [gate])
        x = _feed_forward(block.image_mlp, x, after[:3], rows.image)
        if block.text_mlp is not None and block.text.to_out is not None:
            text_gate, *mlp = text_after
            text = by_text(gated, [text, block.text.to_out(of_text_tokens)], [text_gate])
            text = _feed_forward(block.text_mlp, text, mlp, rows.text)
        return x, text


def _pack(block: Block, layers: Layers) -> _Block:
    joint = block.attn
    is_last = block.ff_context is None
    return _Block(
        norms=(block.norm1, block.norm1_context),
        image=_stream(joint, layers),
        text=_Stream(
            to_qkv=layers.linear(*joined([joint.add_q_proj, joint.add_k_proj, joint.add_v_proj])),
            to_out=None if is_last else layers.linear(*parameters(joint.to_add_out)),
            norm_q=joint.norm_added_q,
            norm_k=joint.norm_added_k,
        ),
        alone=None if block.attn2 is None else _stream(block.attn2, layers),
        image_mlp=_mlp(block.ff, layers),
        text_mlp=None if block.ff_context is None else _mlp(block.ff_context, layers),
    )


def _stream(attention: SelfAttention, layers: Layers) -> _Stream:
    return _Stream(
        to_qkv=layers.linear(*joined([attention.to_q, attention.to_k, attention.to_v])),
        to_out=layers.linear(*parameters(attention.to_out[0])),
        norm_q=attention.norm_q,
        norm_k=attention.norm_k,
    )


def _mlp(ff: FeedForward, layers: Layers) -> LinearFunction:
    return layers.feed_forward(parameters(ff.net[0]["proj"]), parameters(ff.net[2]))


def _split(adaln: AdaLN, modulation: Tensor) -> tuple[Tensor, ...]:
    """What an adaLN made, (R, parts D), in its parts (R, D)."""
    return tuple(part[:, 0] for part in adaln.split(modulation))


def _feed_forward(mlp: LinearFunction, x: Tensor, modulation: Sequence[Tensor], layout: Layout) -> Tensor:
    shift, scale, gate = modulation
    return layout.by_row(gated, [x, mlp(layout.by_row(modulate, [norm(x)], [shift, scale]))], [gate])


def _side_by_side(image: Tensor, text: Tensor, pieces: Sequence[tuple[RowRun, ...]]) -> Tensor:
    """Image tokens (T, ...) and text tokens (S, ...) as (J, ...): each row's image tokens, followed by its text's."""
    return _end_to_end(
        [
            torch.cat([of_image.batch(image), of_text.batch(text)], dim=1).flatten(0, 1)
            for of_image, of_text in pieces
        ]
    )


def _parted(both: Tensor, pieces: Sequence[tuple[RowRun, ...]]) -> tuple[Tensor, Tensor]:
    """The way back: (J, D) to image tokens (T, D) and text tokens (S, D)."""
    images, texts, start = list[Tensor](), list[Tensor](), 0
    for of_image, of_text in pieces:
        rows, length = of_image.num_rows, of_image.length + of_text.length
        own = both[start : start + rows * length].unflatten(0, (rows, length))
        images.append(own[:, : of_image.length].flatten(0, 1))
        texts.append(own[:, of_image.length :].flatten(0, 1))
        start += rows * length
    return _end_to_end(images), _end_to_end(texts)


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
