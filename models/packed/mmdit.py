"""The MMDiT of Stable Diffusion 3 and 3.5 as the engine runs it: rows of any size in one evaluation.

The weights are those of `safelight.models.networks.mmdit`, the plain version.
Here one product gives a stream's queries, keys and values, the tokens of all rows form one matrix, and one
attention covers each row's image and text tokens.

Shapes: R rows, T image tokens of all rows, L text tokens of a row, S text tokens of all rows, J = T + S,
D width, A heads, K = D / A, M modulation channels of all blocks, P channels of the pooled text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.models.networks.layers import FeedForward, modulate
from safelight.models.networks.mmdit import AdaLN, Block, ImageAttention, MMDiT, norm
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
from safelight.models.packed.layout import ByRow, Layout, RowRun, common_runs
from safelight.models.packed.linear import UNQUANTIZED, LayerFactory, LinearFunction, make_linear


@dataclass(frozen=True, slots=True)
class Text:
    """One text: the tokens (L, D) that enter the first block, and the pooled text (1, P)."""

    tokens: Tensor
    pooled: Tensor

    @property
    def num_bytes(self) -> int:
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """One text, and the modulations (times, M) of every adaLN at every time of its plan."""

    text: Text
    modulations: Tensor

    @property
    def text_tokens(self) -> int:
        return len(self.text.tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of rows: their layouts, their packed texts, and each row's modulations."""

    image: Layout
    text: Layout
    image_by_row: ByRow
    text_by_row: ByRow
    positions: Tensor  # (T, D)
    tokens: Tensor  # of the texts, (S, D)
    modulations: tuple[Tensor, ...]
    runs: tuple[tuple[RowRun, ...], ...]  # (image, text) runs of rows with equal lengths in both
    joint_attention: AttentionMetadata
    image_attention: AttentionMetadata | None  # of the dual blocks


@dataclass(frozen=True, slots=True)
class _Stream:
    """The linear layers of one stream around an attention, with the norms of its queries and keys."""

    to_qkv: LinearFunction
    to_out: LinearFunction | None
    norm_q: nn.Module
    norm_k: nn.Module

    def query_key_value(self, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens (T, D) to queries, keys and values (T, A, K)."""
        q, k, v = torch.unflatten(self.to_qkv(x), 1, (3, heads, -1)).unbind(1)
        return self.norm_q(q), self.norm_k(k), v


@dataclass(frozen=True, slots=True)
class _Block:
    """The linear layers of one block, and the `norms` that split its modulation."""

    norms: tuple[AdaLN, AdaLN]  # image, text
    image: _Stream
    text: _Stream
    dual: _Stream | None  # the image's second attention, to itself only
    image_mlp: LinearFunction
    text_mlp: LinearFunction | None


class PackedMMDiT:
    """An `MMDiT` with its layers fused for inference; the original loses its blocks and is useless after."""

    def __init__(self, mmdit: MMDiT, attention: PackedAttention, layers: LayerFactory = UNQUANTIZED):
        self.config = mmdit.config
        self.attention = attention
        self._heads = mmdit.config.num_attention_heads
        self._mmdit = mmdit
        self._adaln = make_linear(*fuse_layers([adaln.linear for adaln in mmdit.norms()]))
        self._widths = [adaln.linear.out_features for adaln in mmdit.norms()]
        self._patch = make_linear(*patch_weight_and_bias(mmdit.pos_embed.proj))
        self._blocks = [_make_block(block, layers) for block in mmdit.transformer_blocks]
        self._final = make_linear(*weight_and_bias(mmdit.proj_out))
        self.is_compiled = layers.is_compiled
        self._steps = _Steps(
            query_key_value=layers.step(_query_key_value),
            add_attended=layers.step(_add_attended),
            feed_forward=layers.step(_feed_forward),
        )
        for adaln in mmdit.norms():
            del adaln.linear
        del mmdit.transformer_blocks

    @property
    def attention_name(self) -> str:
        return self.attention.name

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        """Map `timesteps` (times,), each 1000 t, to embeddings (times, D), as the plain network does."""
        return self._mmdit.prepare_times(timesteps, size)

    def prepare_text(self, states: Tensor, mask: Tensor, pooled: Tensor | None) -> Text:
        """Prepare one text: `states` (L, joint_attention_dim) and `pooled` (P,); no token is masked."""
        if pooled is None:
            raise ValueError("this network reads the pooled text as well")
        return Text(self._mmdit.text_tokens(states[None])[0], pooled[None])

    def prepare_row(self, text: Text, times: Tensor) -> Row:
        """Combine a text with the `times` of a plan."""
        return Row(text, self._adaln(self._mmdit.conditioning(times, text.pooled)))

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> Rows:
        """Pack R rows end to end; `shapes` are their latents' (height, width)."""
        patch = self.config.patch_size
        image = Layout(tuple((height // patch) * (width // patch) for height, width in shapes))
        text = Layout(tuple(row.text_tokens for row in rows))
        joint = Layout(tuple(map(sum, zip(image.lengths, text.lengths, strict=True))))
        tokens = torch.cat([row.text.tokens for row in rows])
        device = tokens.device
        positions = torch.cat([self._mmdit.pos_embed.positions(*shape)[0] for shape in shapes])
        has_dual = any(block.dual for block in self._blocks)
        return Rows(
            image=image,
            text=text,
            image_by_row=token_rows(image, device) if self.is_compiled else image,
            text_by_row=token_rows(text, device) if self.is_compiled else text,
            positions=positions.to(tokens.dtype),
            tokens=tokens,
            modulations=tuple(row.modulations for row in rows),
            runs=tuple(common_runs((image, text))),
            joint_attention=self.attention.prepare(joint, joint, None, tokens.dtype, device),
            image_attention=(
                self.attention.prepare(image, image, None, tokens.dtype, device) if has_dual else None
            ),
        )

    def predict(self, latents: Sequence[Tensor], rows: Rows, steps: Sequence[int]) -> list[Tensor]:
        """Map latents, (rows, C, H, W) for each shape in turn, to raw predictions (rows, out_channels, H, W).

        Row r uses the time `steps[r]` of its plan.
        """
        patch = self.config.patch_size
        modulations = torch.stack([m[step] for m, step in zip(rows.modulations, steps, strict=True)])
        if self.is_compiled:
            modulations = with_min_rows(modulations, 0)
        *block_modulations, final = torch.split(modulations, self._widths, dim=1)
        x = self._patch(torch.cat([patchify(group, patch) for group in latents])) + rows.positions
        text = rows.tokens
        for block, image_modulation, text_modulation in zip(
            self._blocks, block_modulations[::2], block_modulations[1::2], strict=True
        ):
            image_norm, text_norm = block.norms
            x, text = self._run_block(
                block, x, text, _split(image_norm, image_modulation), _split(text_norm, text_modulation), rows
            )
        shift, scale = _split(self._mmdit.norm_out, final)
        x = self._final(rows.image_by_row.apply_by_row(modulate, [norm(x)], [shift, scale]))
        return unpatchify_groups(x, latents, patch)

    def _run_block(
        self,
        block: _Block,
        x: Tensor,
        text: Tensor,
        image_modulation: Sequence[Tensor],
        text_modulation: Sequence[Tensor],
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """Run one block.

        Args:
            block: its layers.
            x: image tokens (T, D).
            text: text tokens (S, D).
            image_modulation: shift, scale and gate of attention, of the feed-forward and, in a dual block, of
                the second attention, (R, D) each.
            text_modulation: the same of the text; shift and scale only in the last block.
            rows: the batch.

        Returns:
            Image tokens (T, D) and text tokens (S, D).
        """
        steps, by_image, by_text = self._steps, rows.image_by_row, rows.text_by_row
        image_qkv = steps.query_key_value(block.image, x, *image_modulation[:2], by_image, self._heads)
        text_qkv = steps.query_key_value(block.text, text, *text_modulation[:2], by_text, self._heads)
        q, k, v = (_interleave(*pair, rows.runs) for pair in zip(image_qkv, text_qkv, strict=True))
        attended, text_attended = _separate(
            self.attention(q, k, v, rows.joint_attention).flatten(1), rows.runs
        )
        after = steps.add_attended(block.image, x, attended, image_modulation[2], by_image)
        if block.dual is not None:
            shift, scale, gate = image_modulation[6:]
            qkv = steps.query_key_value(block.dual, x, shift, scale, by_image, self._heads)
            attended = self.attention(*qkv, rows.image_attention).flatten(1)
            after = steps.add_attended(block.dual, after, attended, gate, by_image)
        x = steps.feed_forward(block.image_mlp, after, image_modulation[3:6], by_image)
        if block.text_mlp is not None:
            gate, *mlp = text_modulation[2:]
            text = steps.add_attended(block.text, text, text_attended, gate, by_text)
            text = steps.feed_forward(block.text_mlp, text, mlp, by_text)
        return x, text


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of a block between its attentions, as functions of tensors that may be compiled."""

    query_key_value: Callable[..., tuple[Tensor, Tensor, Tensor]]
    add_attended: Callable[..., Tensor]
    feed_forward: Callable[..., Tensor]


def _query_key_value(
    stream: _Stream, x: Tensor, shift: Tensor, scale: Tensor, by_row: ByRow, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, A, K) of a stream's tokens x (T, D); shift and scale are (R, D)."""
    return stream.query_key_value(by_row.apply_by_row(modulate, [norm(x)], [shift, scale]), heads)


def _add_attended(stream: _Stream, x: Tensor, attended: Tensor, gate: Tensor, by_row: ByRow) -> Tensor:
    """x (T, D) with the output (T, D) of an attention, through the stream's last layer and gate (R, D)."""
    assert stream.to_out is not None
    return by_row.apply_by_row(add_gated, [x, stream.to_out(attended)], [gate])


def _feed_forward(mlp: LinearFunction, x: Tensor, modulation: Sequence[Tensor], by_row: ByRow) -> Tensor:
    shift, scale, gate = modulation
    modulated = by_row.apply_by_row(modulate, [norm(x)], [shift, scale])
    return by_row.apply_by_row(add_gated, [x, mlp(modulated)], [gate])


def _make_block(block: Block, layers: LayerFactory) -> _Block:
    joint = block.attn
    text_out = joint.to_add_out
    return _Block(
        norms=(block.norm1, block.norm1_context),
        image=_stream(joint, layers),
        text=_Stream(
            to_qkv=layers.linear(*fuse_layers([joint.add_q_proj, joint.add_k_proj, joint.add_v_proj])),
            to_out=layers.linear(*weight_and_bias(text_out)) if isinstance(text_out, nn.Linear) else None,
            norm_q=joint.norm_added_q,
            norm_k=joint.norm_added_k,
        ),
        dual=None if block.attn2 is None else _stream(block.attn2, layers),
        image_mlp=_mlp(block.ff, layers),
        text_mlp=None if block.ff_context is None else _mlp(block.ff_context, layers),
    )


def _stream(attention: ImageAttention, layers: LayerFactory) -> _Stream:
    return _Stream(
        to_qkv=layers.linear(*fuse_layers([attention.to_q, attention.to_k, attention.to_v])),
        to_out=layers.linear(*weight_and_bias(attention.to_out[0])),
        norm_q=attention.norm_q,
        norm_k=attention.norm_k,
    )


def _mlp(ff: FeedForward, layers: LayerFactory) -> LinearFunction:
    return layers.feed_forward(weight_and_bias(ff.up), weight_and_bias(ff.down))


def _split(adaln: AdaLN, modulation: Tensor) -> tuple[Tensor, ...]:
    """Split the output of an adaLN, (R, parts D), into its parts (R, D)."""
    return tuple(part[:, 0] for part in adaln.split(modulation))


def _interleave(image: Tensor, text: Tensor, runs: Sequence[tuple[RowRun, ...]]) -> Tensor:
    """Pack image tokens (T, ...) and text tokens (S, ...) as (J, ...): each row's image, then its text."""
    return _concatenate(
        [
            torch.cat([image_run.batch(image), text_run.batch(text)], dim=1).flatten(0, 1)
            for image_run, text_run in runs
        ]
    )


def _separate(joint: Tensor, runs: Sequence[tuple[RowRun, ...]]) -> tuple[Tensor, Tensor]:
    """Undo `_interleave`: (J, D) to image tokens (T, D) and text tokens (S, D)."""
    images, texts, start = list[Tensor](), list[Tensor](), 0
    for image_run, text_run in runs:
        rows, length = image_run.num_rows, image_run.length + text_run.length
        tokens = torch.unflatten(joint[start : start + rows * length], 0, (rows, length))
        images.append(tokens[:, : image_run.length].flatten(0, 1))
        texts.append(tokens[:, image_run.length :].flatten(0, 1))
        start += rows * length
    return _concatenate(images), _concatenate(texts)


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
