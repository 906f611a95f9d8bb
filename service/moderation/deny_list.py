"""Words and phrases that no text may hold, from a file of the operator's."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.service.moderation.folding import fold, spelled_words, words_of

ANY_END = "*"  # at the end of an entry: its last word may go on
MIN_SPELLED = 3  # letters of a word that is found in others that stand alone, such as initials
# Scripts that put no space between words, by the first word of their characters' names.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class BadDenyList(ValueError):
    """A file that is no list; the message says which line is wrong."""


@dataclass(frozen=True)
class Entry:
    """A word or a phrase."""

    words: tuple[str, ...]
    is_prefix: bool = False  # whether the last word may go on

    def is_at(self, words: Sequence[str], start: int) -> bool:
        """Whether the entry stands in `words` from `start` on."""
        end = start + len(self.words)
        if end > len(words) or tuple(words[start : end - 1]) != self.words[:-1]:
            return False
        last = words[end - 1]
        return last.startswith(self.words[-1]) if self.is_prefix else last == self.words[-1]


class DenyList:
    """Finds entries in texts, however they are written.

    Args:
        lines: One word or phrase a line; empty lines, and those that begin with `#`, say nothing.

    Raises:
        BadDenyList: A line holds no letter, digit or symbol.
    """

    def __init__(self, lines: Iterable[str]):
        self._entries: dict[str, list[Entry]] = {}  # by their first word, if that is a whole one
        self._prefixes: list[Entry] = []  # of one word
        self._unspaced: set[str] = set()  # found inside of words
        self._spellings: set[str] = set()  # found where letters stand alone
        for number, line in enumerate(lines, 1):
            if (text := line.strip()) and not text.startswith("#"):
                self._add(text, number)

    @classmethod
    def read(cls, path: str) -> "DenyList":
        """The list in a file of UTF-8. Raises `BadDenyList`, also for one that cannot be read."""
        try:
            return cls(Path(path).read_text(encoding="utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise BadDenyList(f"cannot be read: {error}") from None

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._prefixes) + len(self._unspaced)

    def matches(self, text: str) -> bool:
        """Whether `text` holds an entry."""
        words = words_of(fold(text))
        # letters before or after may have been taken for a part of what is spelled
        return self._stands_in(words) or any(
            entry in part
            for entries, parts in (
                (self._spellings, spelled_words(words)),
                (self._unspaced, ["".join(words)]),
            )
            for part in parts
            for entry in entries
        )

    def _add(self, text: str, number: int) -> None:
        words = tuple(words_of(fold(text.removesuffix(ANY_END))))
        if not words:
            raise BadDenyList(f"line {number} holds no letter, digit or symbol")
        entry, spelling = Entry(words, text.endswith(ANY_END)), "".join(words)
        if len(spelling) >= MIN_SPELLED:
            self._spellings.add(spelling)
        if any(map(_is_unspaced, spelling)):
            self._unspaced.add(spelling)
        elif entry.is_prefix and len(words) == 1:
            self._prefixes.append(entry)
        else:
            self._entries.setdefault(words[0], []).append(entry)

    def _stands_in(self, words: Sequence[str]) -> bool:
        return any(
            entry.is_at(words, start)
            for start, word in enumerate(words)
            for entry in (*self._entries.get(word, ()), *self._prefixes)
        )


def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
