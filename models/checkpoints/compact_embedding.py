"""A CLIP's table of token embeddings, of which the file holds only the rows that were trained.

A vocabulary has 49,408 tokens, of which small training sets use a few thousand; the rows of the others are
zero. `open_clip_config.json` says in `token_rows` how many rows the file has; without it, it has all.

Shapes: N trained tokens of V, D channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError

TABLE = "text.token_embedding.weight"  # (V, D), open_clip's name
ROWS = "text.token_embedding.rows"  # (N, D)
TOKENS = "text.token_embedding.tokens"  # (N,) int64, increasing
NUM_ROWS = "token_rows"  # the key in the configuration


def compact_embedding(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the rows of the table that are not zero, and their tokens, in place of the table."""
    table = tensors[TABLE]
    tokens = table.abs().amax(dim=1).nonzero()[:, 0]
    others = {name: tensor for name, tensor in tensors.items() if name != TABLE}
    return others | {ROWS: table[tokens], TOKENS: tokens}


def expand_embedding(tensors: Mapping[str, Tensor], num_tokens: int, folder: Path) -> dict[str, Tensor]:
    """The inverse of `compact_embedding`, for a vocabulary of `num_tokens`; full tables stay as they are.

    Raises `CheckpointError` about `folder` for tokens that are not in the vocabulary or not increasing.
    """
    if ROWS not in tensors:
        return dict(tensors)
    rows, tokens = tensors[ROWS], tensors[TOKENS].long()
    if len(tokens) and (tokens[0] < 0 or tokens[-1] >= num_tokens or (tokens.diff() <= 0).any()):
        raise CheckpointError(f"{folder}: {TOKENS} must increase from 0 to at most {num_tokens - 1}")
    table = rows.new_zeros(num_tokens, rows.shape[1])
    table[tokens] = rows
    others = {name: tensor for name, tensor in tensors.items() if name not in (ROWS, TOKENS)}
    return others | {TABLE: table}


def compact_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], file: Path
) -> dict[str, tuple[int, ...]]:
    """The tensors that a file has by `config`, from the `shapes` of the network.

    Raises `CheckpointError` about `file` if the configuration's number of rows is not one.
    """
    if NUM_ROWS not in config:
        return dict(shapes)
    num_rows, (num_tokens, width) = config[NUM_ROWS], shapes[TABLE]
    if not isinstance(num_rows, int) or not 0 < num_rows <= num_tokens:
        raise CheckpointError(f"{file}: {NUM_ROWS} must be a number from 1 to {num_tokens}, not {num_rows!r}")
    others = {name: shape for name, shape in shapes.items() if name != TABLE}
    return others | {ROWS: (num_rows, width), TOKENS: (num_rows,)}
