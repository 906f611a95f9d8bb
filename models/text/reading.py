"""The input and output types of text towers, shared by every family. torch is imported for annotations only.

Shapes: L text tokens, D width, P width of the pooled text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class UnreadableText(ValueError):
    """A text that a tower cannot read; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as token `ids` (context,), and the words that were left out."""

    ids: Tensor
    num_tokens: int  # of the known words, before truncation
    truncated: bool
    unknown_words: tuple[str, ...] = ()
    prompt_syntax: tuple[str, ...] = ()  # marks that some programs obey, such as weights; without effect
    corrected_words: tuple[tuple[str, str], ...] = ()  # as typed, and the known word that was read instead


@dataclass(frozen=True, slots=True)
class Reading:
    """A tower's output for one text. All tensors are on the CPU, floating-point ones in float32."""

    states: Tensor  # (L, D)
    mask: Tensor  # (L,), False at padding
    pooled: Tensor | None  # (P,), in families that have one
    num_tokens: int  # of the whole text, before truncation, without special tokens
    truncated: bool
    unknown_words: tuple[str, ...] = ()
    prompt_syntax: tuple[str, ...] = ()  # marks that some programs obey, such as weights; without effect
    corrected_words: tuple[tuple[str, str], ...] = ()  # as typed, and the known word that was read instead


class TextTower(Protocol):
    """Encodes one text at a time, at one fixed shape, so that its bits never depend on other texts."""

    flops_per_text: int  # at full length

    def read(self, text: str) -> Reading:
        """Encode `text`, which may be empty. Raises `UnreadableText` if the family cannot read it."""
        ...
