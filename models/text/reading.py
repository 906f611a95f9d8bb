"""What a text tower makes of a text: the nouns that every family shares. No torch here but in annotations.

Shapes: L text tokens, D width, P width of the pooled text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class UnreadableText(ValueError):
    """A text that a tower has no reading of; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as a tower sees it: `ids` (context,), and what had to be left out."""

    ids: Tensor
    num_tokens: int  # of the known words, before truncation
    truncated: bool
    unknown_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tower makes of one text; floats are float32, and everything lies on the CPU, from where stages send it on."""

    states: Tensor  # (L, D)
    mask: Tensor  # (L,), True where a state says something
    pooled: Tensor | None  # (P,), where the family has one
    num_tokens: int  # of the text as asked, before truncation, without special tokens
    truncated: bool
    unknown_words: tuple[str, ...] = ()


class TextTower(Protocol):
    """Reads one text at a time, at one fixed shape, so that its bits never depend on company."""

    flops_per_text: int

    def read(self, text: str) -> Reading:
        """Any text, the empty one too; `UnreadableText` if the family cannot read it."""
        ...
