"""How Stable Diffusion 3 and 3.5 read: two CLIPs side by side on channels, T5 after them, and both CLIPs' pooled vectors.

The states are those of diffusers' `StableDiffusion3Pipeline` wherever both take a text for the same tokens. They part where
open_clip keeps to how CLIP was trained: curly quotes and HTML entities are undone, and an exclamation mark is a word for bigG
as well, although its folder pads with one (transformers then takes each for padding).

Shapes: L text tokens of a CLIP, C channels of both CLIPs together, D of a state as the transformer takes it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.text.bpe import NUM_TOKENS, SPECIAL_TOKENS, BytePairs
from safelight.models.text.hf_clip import ClipTextConfig, HfClipTower
from safelight.models.text.reading import Reading
from safelight.models.text.t5 import T5Encoder, T5EncoderConfig

CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # parts of the folder: L, then bigG
T5, T5_TOKENIZER, T5_CONTEXT = "text_encoder_3", "tokenizer_3", 256
JOINT_WIDTH = 4096  # of a transformer whose config does not say
LONGEST_WORD = 256  # characters; a longer one is read in parts


class Sd3Towers:
    """The text encoders in a checkpoint's `folder`, on a device and in a dtype; without T5's, zeros stand for what it would say.

    Raises `CheckpointError` for parts that do not fit each other, for another tokenizer than CLIP's, and for anything but exactly
    the tensors that the configs ask for.
    """

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype):
        self._pairs = BytePairs()
        self._context, self._width = fitting_sizes(folder)
        self._pads = _read_pads(self._pairs, folder, self._context)
        self._clips = [HfClipTower(folder / part, device, dtype) for part in CLIPS]
        self._t5 = (
            T5Encoder(folder / T5, folder / T5_TOKENIZER, T5_CONTEXT, device, dtype)
            if has_t5(folder)
            else None
        )
        self.flops_per_text = sum(clip.flops_per_text for clip in self._clips) + (
            self._t5.flops_per_text if self._t5 else 0
        )

    def read(self, text: str) -> Reading:
        """States (L + 256, D), all of which the transformer attends to, and the pooled vectors (P,) of L and bigG in a row.

        Tokens are counted as CLIP counts them; a text is truncated if any tower had to cut it.
        """
        tokens = [token for part in self._parts_of(text) for token in self._pairs.encode(part)]
        framed = (self._pairs.frame(tokens, self._context, pad) for pad in self._pads)
        readings = [clip(ids[None]) for clip, ids in zip(self._clips, framed, strict=True)]
        clip_states, pooled = (
            torch.cat(of_both, dim=-1)[0].float().cpu() for of_both in zip(*readings, strict=True)
        )
        t5_states, t5_cut = self._read_t5(text)
        states = torch.cat([F.pad(clip_states, (0, self._width - clip_states.shape[1])), t5_states])
        mask = torch.ones(len(states), dtype=torch.bool)
        return Reading(
            states, mask, pooled, len(tokens), t5_cut or len(tokens) > self._context - SPECIAL_TOKENS
        )

    def _read_t5(self, text: str) -> tuple[Tensor, bool]:
        """States (256, D) and whether the text was cut; T5 attends to its padding here, as in training."""
        if self._t5 is None:
            return torch.zeros(T5_CONTEXT, self._width), False
        tokenised = self._t5.tokenise(text)
        return self._t5(tokenised.ids[None], None)[0].float().cpu(), tokenised.truncated

    def _parts_of(self, text: str) -> Iterator[str]:
        for word in self._pairs.plain_words(text):
            yield from (word[start : start + LONGEST_WORD] for start in range(0, len(word), LONGEST_WORD))


def has_t5(folder: Path) -> bool:
    """Whether a checkpoint brings its T5, which is optional: 4.8 of its 5.6 billion text parameters."""
    return (folder / T5).is_dir()


def fitting_sizes(folder: Path) -> tuple[int, int]:
    """Tokens that a CLIP reads and channels that the transformer takes; `CheckpointError` unless the configs agree on them."""
    clips = [_read_clip(folder / part) for part in CLIPS]
    transformer = read_json(folder / "transformer" / "config.json")
    width = transformer.get("joint_attention_dim", JOINT_WIDTH)
    if type(width) is not int:
        raise CheckpointError(
            f"{folder / 'transformer' / 'config.json'}: joint_attention_dim is {width!r}, expected a number of channels"
        )
    contexts, channels = (
        [clip.max_position_embeddings for clip in clips],
        sum(clip.hidden_size for clip in clips),
    )
    if clips[0].hidden_size > clips[1].hidden_size:
        raise CheckpointError(
            f"{folder}: {' is wider than '.join(CLIPS)}: they are the wrong way round, the smaller CLIP-L comes first"
        )
    if contexts[0] != contexts[1]:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS)} read {contexts[0]} and {contexts[1]} tokens, which must be as many"
        )
    if channels > width:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS)} have {channels} channels together, the transformer takes {width}"
        )
    if has_t5(folder) and (t5_width := T5EncoderConfig.read(folder / T5).d_model) != width:
        raise CheckpointError(f"{folder}: {T5} has {t5_width} channels, the transformer takes {width}")
    return contexts[0], width


def check_tokenizers(folder: Path) -> None:
    """Raise `CheckpointError` unless both CLIPs' tokenizers in `folder` are CLIP's, for as many tokens as the encoders read."""
    context, _ = fitting_sizes(folder)
    _read_pads(BytePairs(), folder, context)


def _read_pads(pairs: BytePairs, folder: Path, context: int) -> list[int]:
    """L fills up with the end mark, bigG with another token, both published so."""
    pads = [_read_pad(pairs, folder / tokenizer, context) for tokenizer in CLIPS.values()]
    if pads[0] != pairs.end_id and pads[1] == pairs.end_id:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS.values())} are the wrong way round, the first pads with the end mark"
        )
    return pads


def _read_pad(pairs: BytePairs, folder: Path, context: int) -> int:
    tokenizer = pairs.read_folder(folder)
    if tokenizer.context_length not in (None, context):
        raise CheckpointError(
            f"{folder}: model_max_length is {tokenizer.context_length}, the text encoders read {context} tokens"
        )
    return tokenizer.pad_id


def _read_clip(folder: Path) -> ClipTextConfig:
    config = ClipTextConfig.read(folder)
    if config.vocab_size != NUM_TOKENS:
        raise CheckpointError(
            f"{folder / 'config.json'}: vocab_size is {config.vocab_size}, CLIP's tokenizer has {NUM_TOKENS} tokens"
        )
    return config
