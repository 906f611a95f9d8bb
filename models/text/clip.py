"""The embedded text tower: an open_clip CLIP loaded from a local folder, as states for cross-attention.

The pooled vector is one more state in front of the token states: a PixArt transformer reads no pooled text.

Shapes: B texts, L text tokens, D width.
"""

import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.text.bpe import SPECIAL_TOKENS, BytePairs
from safelight.models.text.emoji_names import name_of, read_names, split_emoji
from safelight.models.text.flops import open_clip_flops
from safelight.models.text.open_clip_classes import TextTransformer
from safelight.models.text.open_clip_folder import load_clip, read_model_config
from safelight.models.text.prompt_syntax import read_prompt
from safelight.models.text.reading import Reading, TokenisedText
from safelight.models.text.spelling import Spelling, read_words

MAX_WORD_LENGTH = 64  # characters; a longer word is unknown
VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))


class ClipTextTower(nn.Module):
    """The text half of an open_clip CLIP.

    `folder` holds `open_clip_config.json` and `open_clip_model.safetensors`.
    Embedding rows of tokens that do not occur in the training captions are zero. A word with such a token is
    dropped before the tower and reported: it would carry no information and shift the positions of the other
    words. A word one edit from a word of `words.txt` is read as that word, and reported. An emoji that
    `emoji_names.json` names means that name. Weights and other marks that programs obey are taken out and
    reported, because the captions had none.
    Raises `CheckpointError` for anything but exactly the tensors that the config asks for.
    """

    def __init__(self, folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS):
        super().__init__()
        self.text = load_clip(folder, options).text
        self.context_length: int = self.text.context_length
        self.width: int = self.text.width
        self.num_states = self.context_length + 1
        self.flops_per_text = open_clip_flops(read_model_config(folder))
        self._pairs = BytePairs()
        self._emoji_names = read_names(folder)
        self._spelling = Spelling(read_words(folder))
        self._known = self.text.token_embedding.weight.abs().amax(dim=1) > 0
        # A prompt must not contain the marks that start and end a text.
        self._known[[self._pairs.start_id, self._pairs.end_id]] = False

    def read(self, text: str) -> Reading:
        """States (1 + context, D) and their mask; the first state is the pooled vector."""
        tokenised = self.tokenise(text)
        states, mask = self(tokenised.ids[None])
        return Reading(
            states[0],
            mask[0],
            None,
            tokenised.num_tokens,
            tokenised.truncated,
            tokenised.unknown_words,
            tokenised.prompt_syntax,
            tokenised.corrected_words,
        )

    def tokenise(self, text: str) -> TokenisedText:
        """The known words of `text` as ids, cut to the context length; unknown words are listed."""
        prompt = read_prompt(text)
        unknown = UnknownWords()
        corrected: dict[str, str] = {}
        token_ids: list[int] = []
        words_of: dict[tuple[str, bool], list[Word]] = {}  # a text may repeat one piece a thousand times
        for piece in split_emoji(prompt.text):
            if piece not in words_of:
                words_of[piece] = self._read_piece(*piece)
            for word in words_of[piece]:
                if word.tokens:
                    token_ids += word.tokens
                    if word.typed:
                        corrected[word.typed] = word.text
                else:
                    unknown.add(word.text, word.is_joined)
        ids = self._pairs.frame(token_ids, self.context_length, pad_id=0)
        is_cut = len(token_ids) > self.context_length - SPECIAL_TOKENS
        return TokenisedText(
            ids, len(token_ids), is_cut, unknown.as_tuple(), prompt.marks, tuple(corrected.items())
        )

    def _read_piece(self, piece: str, is_emoji: bool) -> list["Word"]:
        """The words of a piece of a text; an emoji that is not known is one of them as a whole."""
        text = piece
        if is_emoji and (name := name_of(piece, self._emoji_names)) is not None:
            text = name
        words: list[Word] = []
        for typed, is_joined in self._pairs.words(text):
            near = self._spelling.correct(typed)
            word = near or typed
            tokens = self._pairs.encode(word) if len(word) <= MAX_WORD_LENGTH else []
            if tokens and all(self._known[token] for token in tokens):
                words.append(Word(word, is_joined, tuple(tokens), typed=typed if near else ""))
            elif is_emoji:
                words.append(Word(text, is_joined=False))
            else:
                words.append(Word(typed, is_joined))
        return words

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, context) to states (B, 1 + context, D) and a mask (B, 1 + context), False at padding."""
        return text_states(self.text, ids)


def text_states(tower: TextTransformer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, 1 + L, D) and mask (B, 1 + L) of `ids` (B, L) by open_clip's text tower.

    The network allows no L but the length of its mask.
    """
    out = tower.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
    tokens, pooled = out["text_intermediates"][-1], out["text_features"]
    # to unit RMS, like the token states
    pooled = nn.functional.normalize(pooled, dim=-1) * math.sqrt(pooled.shape[-1])
    states = torch.cat([pooled[:, None], tokens], dim=1)
    lengths = ids.argmax(dim=1) + 1  # the end mark has the largest id
    positions = torch.arange(1 + ids.shape[1], device=ids.device)
    return states, positions[None] <= lengths[:, None]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text."""

    text: str
    is_joined: bool  # whether nothing stands between it and the word before
    tokens: tuple[int, ...] = ()  # none if the word is not known
    typed: str = ""  # what stands in the text, if `text` is its correction


class UnknownWords:
    """The words of a text that are not known, in order."""

    def __init__(self) -> None:
        self._words: list[str] = []

    def add(self, word: str, is_joined: bool) -> None:
        """Add `word`; `is_joined` says whether nothing stands between it and the word before.

        The tokenizer splits a word at a vowel sign of Devanagari and the like: such pieces are one word.
        """
        if self._words and is_joined and (_is_sign(self._words[-1][-1]) or _is_sign(word[0])):
            self._words[-1] += word
        else:
            self._words.append(word)

    def as_tuple(self) -> tuple[str, ...]:
        """Each word once, without punctuation."""
        return tuple(dict.fromkeys(word for word in self._words if any(map(_is_content, word))))


def _is_sign(character: str) -> bool:
    """Whether `character` belongs to a letter beside it: accents and vowel signs."""
    return unicodedata.category(character).startswith("M") and character not in VARIATION_SELECTORS


def _is_content(character: str) -> bool:
    """Whether `character` says something: letters, digits, and symbols other than those of ASCII."""
    category = unicodedata.category(character)
    is_symbol = not character.isascii() and (category.startswith("S") or category in ("Cn", "Co"))
    return character.isalnum() or is_symbol or _is_sign(character)
