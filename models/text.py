"""The embedded text tower: an open_clip CLIP loaded from a local folder, as states for cross-attention.

Shapes: L text tokens, D width. The pooled vector rides as one more token in front of the token states, which is
how it reaches a PixArt-shaped DiT.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

WORD = re.compile(r"\S+")
SPECIAL_TOKENS = 2  # start and end of text


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as the tower sees it: `ids` (context,), and what had to be left out."""

    ids: Tensor
    num_tokens: int  # of the known words, before truncation
    truncated: bool
    unknown_words: tuple[str, ...]


class ClipTextTower(nn.Module):
    """The text half of an open_clip CLIP; `folder` holds `open_clip_config.json` and `open_clip_model.safetensors`.

    Embedding rows of tokens never seen in training are zero. A word with such a token says nothing to the model,
    so it is dropped before the tower and reported, rather than left to shift the positions of the others.
    """

    def __init__(self, folder: Path):
        super().__init__()
        clip = open_clip.create_model(f"local-dir:{folder}")
        self.text = clip.text.eval().requires_grad_(False)
        self.context_length: int = self.text.context_length
        self.width: int = self.text.width
        self.num_states = self.context_length + 1
        self._tokenizer = SimpleTokenizer(context_length=self.context_length)
        self._known = self.text.token_embedding.weight.abs().amax(dim=1) > 0

    def tokenise(self, text: str) -> TokenisedText:
        """Known words of `text` as ids, cut to the context length; the rest is counted and named."""
        kept: list[int] = []
        unknown: list[str] = []
        for word in WORD.findall(text):
            tokens = self._tokenizer.encode(word)
            if all(self._known[token] for token in tokens):
                kept += tokens
            else:
                unknown.append(word)
        room = self.context_length - SPECIAL_TOKENS
        ids = torch.zeros(self.context_length, dtype=torch.long)
        framed = [self._tokenizer.sot_token_id, *kept[:room], self._tokenizer.eot_token_id]
        ids[: len(framed)] = torch.tensor(framed)
        return TokenisedText(ids, len(kept), len(kept) > room, tuple(dict.fromkeys(unknown)))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 1 + context, D) and mask (B, 1 + context), True where a state says something; `ids` (B, context)."""
        out = self.text.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
        tokens, pooled = out["text_intermediates"][-1], out["text_features"]
        pooled = nn.functional.normalize(pooled, dim=-1) * math.sqrt(pooled.shape[-1])  # unit RMS, like the tokens
        states = torch.cat([pooled[:, None], tokens], dim=1)
        lengths = ids.argmax(dim=1) + 1  # the end mark has the largest id
        positions = torch.arange(self.num_states, device=ids.device)
        return states, positions[None] <= lengths[:, None]
