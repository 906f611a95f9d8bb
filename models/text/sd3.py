"""The text encoders of Stable Diffusion 3 and 3.5: two CLIPs and a T5.

The states of the two CLIPs are concatenated on channels, and the states of T5 are appended as further tokens.
The pooled text is the pooled vectors of both CLIPs, concatenated.

The states equal those of diffusers' `StableDiffusion3Pipeline` wherever both split a text into the same
tokens. They differ where open_clip follows CLIP's training: curly quotes and HTML entities are undone, and
"!" is a word for bigG too. The tokenizer of bigG pads with "!", so transformers reads each one as padding.

Shapes: L text tokens of a CLIP, D channels of a state as the transformer takes it, P channels of the pooled
text.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.model_index import has_optional_part
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.text.bpe import NUM_TOKENS, SPECIAL_TOKENS, BytePairs
from safelight.models.text.config import SD3_T5_TOKENS, ClipTextConfig, T5EncoderConfig
from safelight.models.text.hf_clip import HfClipTower
from safelight.models.text.prompt_syntax import read_prompt
from safelight.models.text.reading import Reading
from safelight.models.text.t5 import T5Encoder

CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # folders of L, then bigG
T5, T5_TOKENIZER = "text_encoder_3", "tokenizer_3"
JOINT_WIDTH = 4096  # default of a transformer's `joint_attention_dim`
MAX_WORD_LENGTH = 256  # characters; a longer word is encoded in pieces


class Sd3Towers:
    """The text encoders of a checkpoint, on a device and in a dtype; without a T5 its states are zeros.

    Raises `CheckpointError` for parts that do not fit each other, for another tokenizer than CLIP's, and for
    anything but exactly the tensors that the configs ask for.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        dtype: torch.dtype,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ):
        self._pairs = BytePairs()
        self._context, self._width = fitting_sizes(folder)
        self._pads = _read_pads(self._pairs, folder, self._context)
        self._clips = [HfClipTower(folder / part, device, dtype, options) for part in CLIPS]
        self._t5 = _load_t5(folder, device, dtype, options) if has_t5(folder) else None
        t5_flops = self._t5.flops_per_text if self._t5 else 0
        self.flops_per_text = sum(clip.flops_per_text for clip in self._clips) + t5_flops

    def read(self, text: str) -> Reading:
        """States (L + 256, D), all of which are attended to, and the pooled text (P,): CLIP-L, then bigG.

        Tokens are counted as CLIP counts them; a text is truncated if any encoder had to cut it.
        """
        tokens = [token for piece in self._split(text) for token in self._pairs.encode(piece)]
        framed = (self._pairs.frame(tokens, self._context, pad) for pad in self._pads)
        readings = [clip(ids[None]) for clip, ids in zip(self._clips, framed, strict=True)]
        clip_states, pooled = (
            torch.cat(pair, dim=-1)[0].float().cpu() for pair in zip(*readings, strict=True)
        )
        t5_states, is_t5_cut = self._read_t5(text)
        states = torch.cat([F.pad(clip_states, (0, self._width - clip_states.shape[1])), t5_states])
        mask = torch.ones(len(states), dtype=torch.bool)
        return Reading(
            states,
            mask,
            pooled,
            len(tokens),
            truncated=is_t5_cut or len(tokens) > self._context - SPECIAL_TOKENS,
            prompt_syntax=read_prompt(text).marks,
        )

    def _read_t5(self, text: str) -> tuple[Tensor, bool]:
        """States (256, D) and whether the text was cut; T5 attends to its padding, as in training."""
        if self._t5 is None:
            return torch.zeros(SD3_T5_TOKENS, self._width), False
        tokenised = self._t5.tokenise(text)
        return self._t5(tokenised.ids[None], None)[0].float().cpu(), tokenised.truncated

    def _split(self, text: str) -> Iterator[str]:
        for word in self._pairs.plain_words(text):
            yield from (
                word[start : start + MAX_WORD_LENGTH] for start in range(0, len(word), MAX_WORD_LENGTH)
            )


def _load_t5(folder: Path, device: torch.device | str, dtype: torch.dtype, options: ReadOptions) -> T5Encoder:
    return T5Encoder(folder / T5, folder / T5_TOKENIZER, SD3_T5_TOKENS, device, dtype, options)


def has_t5(folder: Path) -> bool:
    """Whether the checkpoint has its optional T5, 4.8 of the 5.6 billion parameters of the text encoders."""
    return has_optional_part(folder, T5, T5_TOKENIZER)


def fitting_sizes(folder: Path) -> tuple[int, int]:
    """The number of tokens that a CLIP reads, and of channels that the transformer takes.

    Raises `CheckpointError` unless all configs agree on them.
    """
    clips = [_read_clip(folder / part) for part in CLIPS]
    transformer = read_json(folder / "transformer" / "config.json")
    width = transformer.get("joint_attention_dim", JOINT_WIDTH)
    if type(width) is not int:
        raise CheckpointError(
            f"{folder / 'transformer' / 'config.json'}: joint_attention_dim is {width!r}, "
            "expected a number of channels"
        )
    contexts = [clip.max_position_embeddings for clip in clips]
    channels = sum(clip.hidden_size for clip in clips)
    if clips[0].hidden_size > clips[1].hidden_size:
        raise CheckpointError(
            f"{folder}: {' is wider than '.join(CLIPS)}: they are the wrong way round, "
            "the smaller CLIP-L comes first"
        )
    if contexts[0] != contexts[1]:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS)} read {contexts[0]} and {contexts[1]} tokens, "
            "which must be as many"
        )
    if channels > width:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS)} have {channels} channels together, "
            f"the transformer takes {width}"
        )
    if has_t5(folder) and (t5_width := T5EncoderConfig.read(folder / T5).d_model) != width:
        raise CheckpointError(f"{folder}: {T5} has {t5_width} channels, the transformer takes {width}")
    return contexts[0], width


def check_tokenizers(folder: Path) -> None:
    """Raise `CheckpointError` unless both tokenizers are CLIP's, for the length of the encoders' context."""
    context, _ = fitting_sizes(folder)
    _read_pads(BytePairs(), folder, context)


def _read_pads(pairs: BytePairs, folder: Path, context: int) -> list[int]:
    """The padding tokens of L and bigG. The published L pads with the end mark, bigG with another token."""
    pads = [_read_pad(pairs, folder / tokenizer, context) for tokenizer in CLIPS.values()]
    if pads[0] != pairs.end_id and pads[1] == pairs.end_id:
        raise CheckpointError(
            f"{folder}: {' and '.join(CLIPS.values())} are the wrong way round, "
            "the first pads with the end mark"
        )
    return pads


def _read_pad(pairs: BytePairs, folder: Path, context: int) -> int:
    tokenizer = pairs.read_folder(folder)
    if tokenizer.context_length not in (None, context):
        raise CheckpointError(
            f"{folder}: model_max_length is {tokenizer.context_length}, "
            f"the text encoders read {context} tokens"
        )
    return tokenizer.pad_id


def _read_clip(folder: Path) -> ClipTextConfig:
    config = ClipTextConfig.read(folder)
    if config.vocab_size != NUM_TOKENS:
        raise CheckpointError(
            f"{folder / 'config.json'}: vocab_size is {config.vocab_size}, "
            f"CLIP's tokenizer has {NUM_TOKENS} tokens"
        )
    return config
