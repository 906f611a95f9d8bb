"""The embedded text tower: an open_clip CLIP loaded from a local folder, as states for cross-attention.

Shapes: B texts, L text tokens, D width. The pooled vector rides as one more token in front of the token states, which is
how it reaches a PixArt-shaped DiT.
"""

import math
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, Shapes, load_into, shapes_of
from safelight.models.text.bpe import SPECIAL_TOKENS, BytePairs
from safelight.models.text.reading import Reading, TokenisedText

LONGEST_WORD = 64  # no word is longer


class ClipTextTower(nn.Module):
    """The text half of an open_clip CLIP; `folder` holds `open_clip_config.json` and `open_clip_model.safetensors`.

    Embedding rows of tokens never seen in training are zero. A word with such a token says nothing to the model,
    so it is dropped before the tower and reported, rather than left to shift the positions of the others.
    Raises `CheckpointError` for anything but exactly the tensors that the config asks for.
    """

    def __init__(self, folder: Path):
        super().__init__()
        # open_clip's own loading reads pickles, stretches positions and shrugs at missing files: only its network is used
        clip = _build(folder)
        load_into(clip, folder, "cpu", torch.float32, CLIP_WEIGHTS)
        self.text = clip.text
        self.context_length: int = self.text.context_length
        self.width: int = self.text.width
        self.num_states = self.context_length + 1
        self.flops_per_text = text_flops(self.text)
        self._pairs = BytePairs()
        self._known = self.text.token_embedding.weight.abs().amax(dim=1) > 0
        self._known[[self._pairs.start_id, self._pairs.end_id]] = (
            False  # what ends a text is not the text's to say
        )

    def read(self, text: str) -> Reading:
        """States (1 + context, D) and their mask; the pooled vector is the first of them."""
        tokenised = self.tokenise(text)
        states, mask = self(tokenised.ids[None])
        return Reading(
            states[0], mask[0], None, tokenised.num_tokens, tokenised.truncated, tokenised.unknown_words
        )

    def tokenise(self, text: str) -> TokenisedText:
        """Known words of `text` as ids, cut to the context length; the rest is counted and named."""
        kept: list[int] = []
        unknown: list[str] = []
        for word in self._pairs.words(text):
            tokens = self._pairs.encode(word) if len(word) <= LONGEST_WORD else []
            if tokens and all(self._known[token] for token in tokens):
                kept += tokens
            elif any(character.isalnum() for character in word):
                unknown.append(word)
        ids = self._pairs.frame(kept, self.context_length, pad_id=0)
        return TokenisedText(
            ids, len(kept), len(kept) > self.context_length - SPECIAL_TOKENS, tuple(dict.fromkeys(unknown))
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 1 + context, D) and mask (B, 1 + context), True where a state says something; `ids` (B, context)."""
        out = self.text.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
        tokens, pooled = out["text_intermediates"][-1], out["text_features"]
        pooled = nn.functional.normalize(pooled, dim=-1) * math.sqrt(
            pooled.shape[-1]
        )  # unit RMS, like the tokens
        states = torch.cat([pooled[:, None], tokens], dim=1)
        lengths = ids.argmax(dim=1) + 1  # the end mark has the largest id
        positions = torch.arange(self.num_states, device=ids.device)
        return states, positions[None] <= lengths[:, None]


def blueprint(folder: Path) -> Shapes:
    """Names and shapes of the tensors that the weights in `folder` must hold: both towers, as open_clip saves them."""
    with torch.device("meta"):
        return shapes_of(_build(folder).state_dict())


def text_flops(tower: TextTransformer) -> int:
    """Operations of a CLIP text tower on one text of full length.

    A block is 8LD^2 (attention's projections) + 4L^2D (its two products) + 4LDF (an MLP of width F); then one state is projected.
    """
    length, width = tower.context_length, tower.width
    mlp = tower.transformer.resblocks[0].mlp.c_fc.out_features
    block = 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * mlp
    return int(len(tower.transformer.resblocks) * block + 2 * width * tower.output_dim)


def _build(folder: Path) -> CustomTextCLIP:
    config = _read_config(folder)
    return CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CLIP_CONFIG).get("model_cfg", {})
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - config.keys()
    if missing or "hf_model_name" in config["text_cfg"] or not config.get("custom_text"):
        raise CheckpointError(
            f"{folder / CLIP_CONFIG}: only open_clip's own towers with custom_text are supported"
        )
    return dict(config)
