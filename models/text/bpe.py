"""CLIP's byte-pair tokenizer as open_clip ships it, and a check that a folder's tokenizer is the same.

A text is cleaned as in CLIP's training: mojibake and HTML entities are undone, runs of spaces become one, and
letters become lower case.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.missing_files import describe_missing
from safelight.models.text.open_clip_classes import SimpleTokenizer

NUM_TOKENS = 49_408
SPECIAL_TOKENS = 2  # start and end of text
MAX_CACHED_WORDS = 10_000
# Texts that hold no mojibake and no HTML entities.
CLEAN_EMOJI = re.compile("[\U0001f000-\U0001faff\u200d\ufe0f]+")
CLEAN_ASCII = re.compile("[ -%'-~]*")  # all but the ampersand
# The marks for start and end of a text, from open_clip's spelling to the usual one.
MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """The options in the folder of a tokenizer with CLIP's vocabulary."""

    pad_id: int  # token that fills up a short text
    context_length: int | None  # tokens of the longest text, if the folder says so


class BytePairs:
    """Encodes words as CLIP's tokens.

    The time for a word grows faster than its length, so callers must bound the length.
    """

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer()
        self._ids = {MARKS.get(token, token): number for token, number in self._tokenizer.encoder.items()}
        self.start_id: int = self._tokenizer.sot_token_id
        self.end_id: int = self._tokenizer.eot_token_id

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of every token; a token that ends a word is spelt with `</w>`."""
        return dict(self._tokenizer.encoder)

    def words(self, text: str) -> Iterator[tuple[str, bool]]:
        """Words and punctuation of `text`, each with whether it follows the one before without a space.

        A mark in open_clip's spelling is one of them.
        """
        end = -1
        for match in self._tokenizer.pat.finditer(self.clean(text)):
            yield match[0], match.start() == end
            end = match.end()

    def clean(self, text: str) -> str:
        """`text` as in CLIP's training; what that would not change is recognised, which is a lot faster."""
        if CLEAN_EMOJI.fullmatch(text):
            return text
        if CLEAN_ASCII.fullmatch(text):
            return " ".join(text.split()).lower()
        cleaned: str = self._tokenizer.clean_fn(text)
        return cleaned

    def plain_words(self, text: str) -> list[str]:
        """Words and punctuation of `text`, with marks split: none stands for start or end of text."""
        cleaned = self.clean(text)
        for mark in MARKS:
            cleaned = cleaned.replace(mark, f"{mark[0]} {mark[1:]}")
        return [match[0] for match in self._tokenizer.pat.finditer(cleaned)]

    def encode(self, word: str) -> list[int]:
        """The tokens of one word of `words` or `plain_words`."""
        self._bound_cache()
        spelt = "".join(self._tokenizer.byte_encoder[byte] for byte in word.encode())
        return [self._tokenizer.encoder[piece] for piece in self._tokenizer.bpe(spelt).split(" ")]

    def frame(self, tokens: list[int], context_length: int, pad_id: int) -> Tensor:
        """Ids (context_length,): the start mark, as many `tokens` as fit, the end mark, padding."""
        framed = [self.start_id, *tokens[: context_length - SPECIAL_TOKENS], self.end_id]
        return torch.tensor(framed + [pad_id] * (context_length - len(framed)))

    def read_folder(self, folder: Path) -> FolderTokenizer:
        """The options of the tokenizer in `folder`, in transformers' layout.

        Raises `CheckpointError` unless its vocabulary and merges are CLIP's.
        """
        vocabulary, merges = _vocabulary_and_merges(folder)
        if vocabulary != self._ids:
            different = next(
                token for token in self._ids | vocabulary if self._ids.get(token) != vocabulary.get(token)
            )
            raise CheckpointError(
                f"{folder} is not CLIP's tokenizer: "
                f"token {different!r} is missing, too much or has another number"
            )
        if merges != list(self._tokenizer.bpe_ranks):
            raise CheckpointError(f"{folder} is not CLIP's tokenizer: its merges are not CLIP's")
        config = read_json(folder / "tokenizer_config.json")
        pad = config.get("pad_token", MARKS["<end_of_text>"])
        pad = pad.get("content") if isinstance(pad, dict) else pad  # a token with options is an object
        if pad not in self._ids:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: pad_token {pad!r} is not one of CLIP's tokens"
            )
        return FolderTokenizer(self._ids[pad], config.get("model_max_length"))

    def _bound_cache(self) -> None:
        """Empty open_clip's cache of words when it is large: it has no bound of its own."""
        if len(self._tokenizer.cache) > MAX_CACHED_WORDS:
            self._tokenizer.cache = {mark: mark for mark in MARKS}


def _vocabulary_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """Read the two files that most folders have, or the one that transformers 5 writes."""
    if (folder / "vocab.json").exists() or not (folder / "tokenizer.json").exists():
        return read_json(folder / "vocab.json"), _merges(_lines(folder / "merges.txt"))
    model = read_json(folder / "tokenizer.json").get("model") or {}
    return model.get("vocab", {}), _merges(model.get("merges", []))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read: it {describe_missing(path)}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return [line for line in lines if line and not line.startswith("#version")]


def _merges(pairs: Iterable[str | list[str]]) -> list[tuple[str, ...]]:
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
