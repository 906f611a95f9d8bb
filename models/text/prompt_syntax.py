"""Marks in prompts that other programs obey: weights, LoRA tags, command flags. None of them is obeyed here.

| mark | program |
|---|---|
| `(x:1.3)`, `((x))`, `[x]`, `[x:y:0.5]`, `[x|y]`, `BREAK`, `AND`, `<lora:x:1>` | AUTOMATIC1111's web UI |
| `{x}`, `{x|y}`, `__x__` | NovelAI, and extensions for random prompts |
| `(x)1.2`, `x++`, `embedding:x` | Compel, ComfyUI |
| `--v 6 --fast`, `x::2` | Midjourney |

One pair of round brackets without a weight is ordinary text, and so is `x: y`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
MAX_WEIGHT = 32  # characters from a weight's colon to its bracket
MAX_SHOWN = 100  # characters of a mark in an answer

TAG = re.compile(r"<[A-Za-z_]+:[^<>]*>|\bembedding:[\w.-]+|__[\w/-]+__")
# Command flags without a value, with a number, and with a word for a value.
BARE_FLAGS = "fast|relax|turbo|tile|hd|raw|video|draft|public|stealth"
NUMBER_FLAGS = "v|ar|s|q|c|w|iw|sw|cw|niji|aspect|version|stylize|chaos|weird|seed|stop|repeat"
WORD_FLAGS = "style|sref|cref|oref|profile|p|personalize|quality|model|sampler|mode|visibility"
FLAG = re.compile(
    r"(?<!\S)(?:"
    r"--(?:no|n)\b(?:(?!\s--[A-Za-z]).)*"  # its value ends where the next flag starts
    rf"|--(?:{BARE_FLAGS})\b"
    rf"|--(?:{WORD_FLAGS})\b(?:[\s=]+(?!--)\S+)?"
    r"|--[A-Za-z][\w-]*(?:[\s=]+[-+.]?\d[^\s,]*)?"
    # Phones write a long dash for two short ones; before any other word it is a dash.
    rf"|[\u2013\u2014]{{1,2}}(?:(?:{BARE_FLAGS})\b|(?:{NUMBER_FLAGS})[\s=]+\d[^\s,]*)"
    r")",
    re.DOTALL,
)
CONJUNCTION = re.compile(r"(?<!\w)(?:BREAK|AND)(?!\w)")
LOOSE_WEIGHT = re.compile(rf"::\s*(?:{NUMBER})?|(?<=[^\W\d]):[-+]?\d*\.\d+(?![\w.])|(?<=\s):{NUMBER}(?!\S)")
EMPHASIS = re.compile(r"(?<=\w)(?:\+{2,}|-{2,})(?=[\s,]|$)")
ESCAPED_BRACKET = re.compile(r"\\[()\[\]{}]")
REPEATED_COMMA = re.compile(r"\s*,(?:\s*,)*")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
AFTER_BRACKET = re.compile(r"\++(?!\w)|-+(?![\w-])|\d*\.\d+")
WEIGHT = re.compile(rf":\s*{NUMBER}\s*")
# Within brackets: what separates alternatives, and when one replaces another.
SEPARATOR = re.compile(rf"[:|]+\s*{NUMBER}\s*(?=[:|]|$)|[:|()\[\]{{}}]+")


@dataclass
class _Reader:
    """Takes marks out of a text, and remembers them by their place."""

    marks: list[tuple[int, str]] = field(default_factory=list)

    def take(self, pattern: re.Pattern[str], text: str) -> str:
        """`text` with spaces for what `pattern` matches, so that places stay as they are."""
        return pattern.sub(self._blank, text)

    def _blank(self, match: re.Match[str]) -> str:
        self.marks.append((match.start(), match[0].strip()))
        return " " * len(match[0])


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """A text without marks, and the marks that were in it, in order."""

    text: str
    marks: tuple[str, ...]


def read_prompt(text: str) -> PlainPrompt:
    """`text` with its marks taken out. What a weight applies to stays; a text without marks is unchanged."""
    reader = _Reader()
    plain = ESCAPED_BRACKET.sub("  ", text)
    plain = reader.take(TAG, plain)
    plain = reader.take(FLAG, plain)
    if text != text.upper():  # else AND is a word like all others
        plain = reader.take(CONJUNCTION, plain)
    plain = _read_brackets(plain, text, reader)
    plain = reader.take(EMPHASIS, reader.take(LOOSE_WEIGHT, plain))
    marks = dict.fromkeys(mark[:MAX_SHOWN] for _, mark in sorted(reader.marks))
    return PlainPrompt(_tidy(plain) if marks else text, tuple(marks))


def _tidy(plain: str) -> str:
    """`plain` without the spaces and commas that marks have left behind."""
    return REPEATED_COMMA.sub(",", " ".join(plain.split())).strip(" ,")


def _read_brackets(plain: str, text: str, reader: _Reader) -> str:
    """`plain` without brackets that mean something, and without their weights."""
    result = list(plain)
    spans: list[tuple[int, int]] = []  # of the outermost such brackets
    open_brackets: list[int] = []
    for start, end in _groups(plain, open_brackets):
        after = AFTER_BRACKET.match(plain, end + 1)
        weight = _weight_before(plain, start, end) if plain[start] == "(" else None
        is_double = plain[start : start + 2] == "((" and plain[end - 1 : end + 1] == "))"
        if plain[start] == "(" and not (after or is_double or weight is not None):
            continue
        last = after.end() if after else end + 1
        fill = " " if plain[start] == "(" else "|"  # the sign of alternatives, which SEPARATOR takes out
        for first, stop in ((start, start + 1), (end if weight is None else weight, last)):
            result[first:stop] = fill * (stop - first)
        while spans and spans[-1][0] > start:
            spans.pop()
        spans.append((start, last))
    for start, last in spans:
        inside = "".join(result[start:last])
        result[start:last] = SEPARATOR.sub(lambda match: " " * len(match[0]), inside)
        reader.marks.append((start, text[start:last]))
    return _close_bracket("".join(result), text, open_brackets, reader)


def _groups(text: str, open_brackets: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of every pair of brackets, inner ones first; adds those never closed to a list."""
    for place, character in enumerate(text):
        if character in BRACKETS:
            open_brackets.append(place)
        elif open_brackets and character == BRACKETS[text[open_brackets[-1]]]:
            yield open_brackets.pop(), place


def _weight_before(text: str, start: int, end: int) -> int | None:
    """Where the weight starts that ends at `end`; None if there is none after `start`."""
    colon = text.rfind(":", max(start, end - MAX_WEIGHT), end)
    return colon if colon > start and WEIGHT.fullmatch(text, colon, end) else None


def _close_bracket(plain: str, text: str, open_brackets: list[int], reader: _Reader) -> str:
    """`plain` without the weight of a round bracket that is never closed: `(red apple:1.3`."""
    end = len(plain.rstrip())
    start = next((place for place in open_brackets if plain[place] == "("), end)
    weight = _weight_before(plain, start, end)
    if weight is None:
        return plain
    reader.marks.append((start, text[start:end]))
    return f"{plain[:start]} {plain[start + 1 : weight]}"
