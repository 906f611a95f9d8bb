"""Texts as a reader sees them: the same words, however they are written in Unicode."""

import re
import unicodedata

# Marks that Latin, Greek and Cyrillic letters are written with; those of other scripts tell words apart.
MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
# Characters of other categories than Cf that take no room: joiners, fillers and selectors of variants.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f]+")
# Letters that look like those of ASCII, after case folding. The standard library has no such table; these are
# the common ones of Unicode's confusables.txt in Greek, Cyrillic, Armenian, Latin and Cherokee.
LOOKALIKES = str.maketrans(
    {
        character: letter
        for letter, characters in {
            "a": "\u0430\u03b1\u0251\u1d00",
            "b": "\u0432\u03b2\u0299",
            "c": "\u0441\u03f2\u1d04",
            "d": "\u0501\u0111\u1d05",
            "e": "\u0435\u03b5\u1d07",
            "g": "\u0261\u0581\u0262",
            "h": "\u04bb\u043d\u0570\u0127\u029c",
            "i": "\u0456\u03b9\u0131\u0269\u026a",
            "j": "\u0458\u03f3\u1d0a",
            "k": "\u043a\u03ba\u1d0b",
            "l": "\u04cf\u0142\u029f",
            "m": "\u043c\u1d0d",
            "n": "\u03b7\u0578\u0274",
            "o": "\u043e\u03bf\u0585\u00f8\u1d0f",
            "p": "\u0440\u03c1\u1d18",
            "q": "\u051b\u0566",
            "r": "\u0280",
            "s": "\u0455\ua731",
            "t": "\u0442\u03c4\u1d1b",
            "u": "\u03c5\u057d\u1d1c",
            "v": "\u03bd\u0475\u1d20",
            "w": "\u051d\u03c9\u1d21",
            "x": "\u0445\u03c7",
            "y": "\u0443\u03b3\u028f",
            "z": "\u1d22",
        }.items()
        for character in characters
    }
)


def fold(text: str) -> str:
    """`text` in one spelling for all that look alike.

    Compatible characters become plain ones (full width, circled, mathematical), letters lose their case and
    their marks, look-alikes become the letters of ASCII, and what cannot be seen is removed.
    """
    text = unicodedata.normalize("NFKC", _visible(text)).casefold()
    text = MARKS.sub("", unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFKC", _visible(text)).translate(LOOKALIKES)


def _visible(text: str) -> str:
    kept = (character for character in text if unicodedata.category(character) != "Cf")
    return INVISIBLE.sub("", "".join(kept))


def words_of(text: str) -> list[str]:
    """The words of a folded text; a symbol, such as an emoji, is a word by itself."""
    words: list[str] = []
    is_open = False
    for character in text:
        is_letter = character.isalnum() or unicodedata.category(character).startswith("M")
        if is_letter and is_open:
            words[-1] += character
        elif is_letter or unicodedata.category(character).startswith("S"):
            words.append(character)
        is_open = is_letter
    return words


def spelled_words(words: list[str]) -> list[str]:
    """What single letters in a row spell, symbols left out."""
    spelled: list[str] = []
    is_spelling = False
    for word in words:
        if not word[0].isalnum():
            continue
        if len(word) == 1 and is_spelling:
            spelled[-1] += word
        elif len(word) == 1:
            spelled.append(word)
        is_spelling = len(word) == 1
    return spelled
