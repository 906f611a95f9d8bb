"""What of a text is cleaned in a short way is cleaned as open_clip does it."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.models.text.bpe import CLEAN_ASCII, CLEAN_EMOJI, BytePairs

PAIRS = BytePairs()
ASCII = st.text(st.sampled_from(string.printable), max_size=12)
EMOJI = st.text(
    st.one_of(st.characters(min_codepoint=0x1F000, max_codepoint=0x1FAFF), st.sampled_from("\u200d\ufe0f"))
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(ASCII, EMOJI, st.builds(str.__add__, ASCII, EMOJI)))
def test_a_text_is_cleaned_as_by_open_clip(text: str) -> None:
    assert PAIRS.clean(text) == PAIRS._tokenizer.clean_fn(text)


@pytest.mark.parametrize(
    ("text", "is_short"),
    [
        ("A red  apple", True),
        ("🍎", True),
        ("👩🏽\u200d🚀", True),
        ("❤\ufe0f", False),
        ("fish &amp; chips", False),
        ("schÃ¶n", False),
        ("tab\there", False),
        ("🍎 apple", False),
    ],
)
def test_which_texts_are_cleaned_in_a_short_way(text: str, is_short: bool) -> None:
    assert any(pattern.fullmatch(text) for pattern in (CLEAN_EMOJI, CLEAN_ASCII)) == is_short
