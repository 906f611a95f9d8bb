"""Near spellings: the known word that is one edit away from a word that is not known."""

import re
from collections import defaultdict
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path

FILE = "words.txt"  # beside a text tower's weights: the words of its captions, the most frequent first
# Too many short words are one edit from each other.
MIN_LETTERS, MAX_LETTERS = 4, 24
LETTERS = re.compile(f"[a-z]{{{MIN_LETTERS},{MAX_LETTERS}}}")


def read_words(folder: Path) -> tuple[str, ...]:
    """The words of `folder`; none if it has no list."""
    file = folder / FILE
    return tuple(file.read_text(encoding="ascii").split()) if file.exists() else ()


def write_words(words: Iterable[str], folder: Path) -> None:
    """Write `words`, the most frequent first."""
    (folder / FILE).write_text("".join(f"{word}\n" for word in words), encoding="ascii")


class Spelling:
    """Corrects words of lower-case English letters by a list of known words, the most frequent first.

    Two words one edit apart become equal when at most one letter of each is removed, so known words are kept
    under all such forms (as in SymSpell): the time for a word grows with its length only.
    """

    def __init__(self, words: Iterable[str]):
        self._ranks = {word: rank for rank, word in enumerate(words)}
        self._by_form: defaultdict[str, list[str]] = defaultdict(list)
        for word in self._ranks:
            for form in _forms(word):
                self._by_form[form].append(word)

    def correct(self, word: str) -> str | None:
        """The most frequent known word that is one edit from `word`; None if it is known or none is near.

        An edit removes, inserts or replaces a letter, or exchanges two neighbours (Damerau 1964).
        """
        if word in self._ranks or not LETTERS.fullmatch(word):
            return None
        candidates = {candidate for form in _forms(word) for candidate in self._by_form.get(form, ())}
        near = (candidate for candidate in candidates if _is_one_edit(word, candidate))
        return min(near, key=self._ranks.__getitem__, default=None)


def _forms(word: str) -> set[str]:
    """`word`, and `word` without one letter."""
    return {word, *(word[:k] + word[k + 1 :] for k in range(len(word)))}


def _is_one_edit(word: str, other: str) -> bool:
    """Whether one edit makes `other` of `word`, which differ."""
    start = len(commonprefix((word, other)))
    a, b = word[start:], other[start:]
    return (
        a[1:] == b  # removed
        or a == b[1:]  # inserted
        or a[1:] == b[1:]  # replaced
        or (a[1:2] + a[:1] + a[2:] == b and len(a) > 1)  # exchanged
    )
