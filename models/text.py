"""The embedded text tower: an open_clip CLIP loaded from a local folder, as states for cross-attention.

Shapes: L text tokens, D width. The pooled vector rides as one more token in front of the token states, which is
how it reaches a PixArt-shaped DiT.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from models.checkpoint import CLIP_WEIGHTS, fill, load_tensors
from models.folder import CLIP_CONFIG, CheckpointError, read_json

SPECIAL_TOKENS = 2  # start and end of text
LONGEST_PIECE = 64  # byte-pair merging takes time that grows faster than the piece; no word is longer
MERGES_KEPT = 10_000


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
    Raises `CheckpointError` for anything but exactly the tensors that the config asks for.
    """

    def __init__(self, folder: Path):
        super().__init__()
        config = _read_config(folder)
        # open_clip's own loading reads pickles, stretches positions and shrugs at missing files: only its network is used
        clip = CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        fill(clip, load_tensors(folder, "cpu", torch.float32, CLIP_WEIGHTS), folder)
        self.text = clip.text
        self.context_length: int = self.text.context_length
        self.width: int = self.text.width
        self.num_states = self.context_length + 1
        self._tokenizer = SimpleTokenizer(context_length=self.context_length)
        self._known = self.text.token_embedding.weight.abs().amax(dim=1) > 0
        self._known[self._tokenizer.all_special_ids] = False  # what ends a text is not the text's to say

    def tokenise(self, text: str) -> TokenisedText:
        """Known words of `text` as ids, cut to the context length; the rest is counted and named."""
        kept: list[int] = []
        unknown: list[str] = []
        for piece in self._tokenizer.pat.findall(self._tokenizer.clean_fn(text)):
            tokens = self._tokenizer.encode(piece) if len(piece) <= LONGEST_PIECE else []
            if tokens and all(self._known[token] for token in tokens):
                kept += tokens
            elif any(character.isalnum() for character in piece):
                unknown.append(piece)
        self._bound_cache()
        room = self.context_length - SPECIAL_TOKENS
        ids = torch.zeros(self.context_length, dtype=torch.long)
        framed = [self._tokenizer.sot_token_id, *kept[:room], self._tokenizer.eot_token_id]
        ids[: len(framed)] = torch.tensor(framed)
        return TokenisedText(ids, len(kept), len(kept) > room, tuple(dict.fromkeys(unknown)))

    def _bound_cache(self) -> None:
        """open_clip remembers every piece for ever, and callers choose the pieces."""
        if len(self._tokenizer.cache) > MERGES_KEPT:
            self._tokenizer.cache = {token: token for token in map(self._tokenizer.decoder.get, self._tokenizer.all_special_ids)}

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 1 + context, D) and mask (B, 1 + context), True where a state says something; `ids` (B, context)."""
        out = self.text.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
        tokens, pooled = out["text_intermediates"][-1], out["text_features"]
        pooled = nn.functional.normalize(pooled, dim=-1) * math.sqrt(pooled.shape[-1])  # unit RMS, like the tokens
        states = torch.cat([pooled[:, None], tokens], dim=1)
        lengths = ids.argmax(dim=1) + 1  # the end mark has the largest id
        positions = torch.arange(self.num_states, device=ids.device)
        return states, positions[None] <= lengths[:, None]


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CLIP_CONFIG).get("model_cfg", {})
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - config.keys()
    if missing or "hf_model_name" in config["text_cfg"] or not config.get("custom_text"):
        raise CheckpointError(f"{folder / CLIP_CONFIG}: only open_clip's own towers with custom_text are supported")
    return dict(config)
