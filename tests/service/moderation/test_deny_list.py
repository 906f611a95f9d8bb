"""The list of denied words: what it finds however it is written, and what it leaves alone."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from safelight.service.moderation.deny_list import BadDenyList, DenyList
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings

LINES = """
# made-up words
grobnik
dark zorbel
flibb*
Straße
пример
禁止
\U0001f52b
""".splitlines()

FOUND = {
    "as it is": "a grobnik on a hill",
    "in capitals": "A GROBNIK",
    "in full width": "ｇｒｏｂｎｉｋ",
    "in circles": "ⓖⓡⓞⓑⓝⓘⓚ",
    "in mathematical letters": "\U0001d420\U0001d42b\U0001d428\U0001d41b\U0001d427\U0001d422\U0001d424",
    "with Cyrillic letters": "gr\u043ebn\u0456\u043a",
    "with Greek letters": "gr\u03bfbn\u03b9\u03ba",
    "with small capitals": "\u0262\u0280\u1d0f\u0299\u0274\u026a\u1d0b",
    "with marks": "gr\u00f6bn\u00ef\u0137",
    "with piled marks": "g\u0300\u0301\u0302r\u0335obn\u0338ik",
    "with zero-width spaces": "gro\u200bb\u200cn\u200di\u2060k",
    "with a soft hyphen": "grob\u00adnik",
    "with a byte order mark": "grob\ufeffnik",
    "with a variation selector": "grob\ufe0fnik",
    "with a Hangul filler": "grob\u3164nik",
    "with a grapheme joiner": "grob\u034fnik",
    "with a change of direction": "\u202egrobnik\u202c",
    "with tags": "grob\U000e0061nik",
    "spelled": "g r o b n i k",
    "spelled with dots": "a g.r.o.b.n.i.k!",
    "spelled with stars": "g*r*o*b*n*i*k",
    "spelled with signs": "g$r$o$b$n$i$k",
    "in punctuation": "(grobnik), please",
    "in weights": "(grobnik:1.4)",
    "after an underscore": "the_grobnik",
    "at the end of a line": "a\ngrobnik\n",
    "a phrase": "one dark zorbel",
    "a phrase over two lines": "Dark,\t\nZORBEL",
    "a prefix": "flibbing away",
    "a prefix alone": "flibb",
    "a sharp s": "die STRASSE",
    "another script": "ПРИМЕР",
    "without spaces": "这是禁止的东西",
    "without spaces, spelled": "禁 止",
    "an emoji": "a \U0001f52b in hand",
    "an emoji in a word": "x\U0001f52by",
}
LEFT = {
    "nothing": "",
    "a part of a word": "grobniks",
    "the end of a word": "agrobnik",
    "half of a phrase": "a dark room with a zorbe",
    "a phrase in another order": "zorbel dark",
    "a phrase with a word between": "dark blue zorbel",
    "a word with the prefix inside": "aflibb",
    "half of an ideograph's word": "禁",
    "another emoji": "\U0001f34e",
    "a lone surrogate": "\ud800 apple",
    "letters that spell something else": "a b c",
    "zero-width characters alone": "\u200b\u200c",
}


@pytest.fixture(scope="module")
def deny_list() -> DenyList:
    return DenyList(LINES)


@pytest.mark.parametrize("name", FOUND)
def test_a_word_is_found_however_it_is_written(deny_list: DenyList, name: str) -> None:
    assert deny_list.matches(FOUND[name])


@pytest.mark.parametrize("name", LEFT)
def test_other_words_are_left_alone(deny_list: DenyList, name: str) -> None:
    assert not deny_list.matches(LEFT[name])


def test_the_list_is_folded_as_texts_are() -> None:
    deny_list = DenyList(["ＧＲÖＢＮＩК", "two  Words*"])
    assert deny_list.matches("grobnik") and deny_list.matches("two wordsmiths")
    assert len(deny_list) == 2


@pytest.mark.parametrize("line", ["...", "*", "\u200b", "- !"])
def test_a_line_without_a_word_is_an_error(line: str) -> None:
    with pytest.raises(BadDenyList, match="line 2 holds no letter"):
        DenyList(["word", line])


def test_a_long_text_is_folded_in_proportion(deny_list: DenyList) -> None:
    assert deny_list.matches("a " * 50_000 + "grobnik")
    assert not deny_list.matches("\ufdfa" * 4_000)  # eighteen characters each, when they are compatible


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"word\n!!\n", "line 2 holds no letter")],
)
def test_a_bad_file_is_refused_at_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((BadSetting, ValidationError), match=f"denied_words_file .*{message}"):
        Settings(denied_words_file=str(path))
