"""Numbers as text, and that the patterns of the schema are what the readers read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.service.http.reading.numbers import (
    integer_pattern,
    number_pattern,
    read_integer,
    read_number,
    whole_numbers,
)


@pytest.mark.parametrize("high", [1, 9, 10, 19, 20, 99, 100, 101, 200, 999, 1234])
@pytest.mark.parametrize("low", [0, 1])
def test_a_pattern_of_whole_numbers_has_exactly_those(low: int, high: int) -> None:
    pattern = re.compile(whole_numbers(low, high))
    matched = [number for number in range(10 * high + 2) if pattern.fullmatch(str(number))]
    assert matched == list(range(low, high + 1))
    assert pattern.fullmatch(f"00{high}") and not pattern.fullmatch(f"{high}0") and not pattern.fullmatch("")


NUMBER_TEXTS = st.from_regex(r"\A *[+-]?[0-9]{0,4}(\.[0-9]{0,2})? *\Z")


@given(NUMBER_TEXTS)
def test_the_integer_pattern_is_what_is_read(text: str) -> None:
    value = read_integer(text)
    is_in_range = isinstance(value, int) and 1 <= value <= 200
    assert bool(re.search(integer_pattern(1, 200), text)) == is_in_range


@given(NUMBER_TEXTS.filter(lambda text: "-0" not in text.replace(" ", "") and "-." not in text))
def test_the_number_pattern_is_what_is_read(text: str) -> None:
    value = read_number(text)
    assert bool(re.search(number_pattern(20), text)) == (isinstance(value, float) and 0 <= value <= 20)


@pytest.mark.parametrize(
    "value", ["", "x", "1.5", "1e3", "+1", "0x10", "1_000", "٣", "1" * 401, 1.5, True, None, [1]]
)
def test_what_is_no_whole_number_stays_as_it_is(value: object) -> None:
    assert read_integer(value) is value


@pytest.mark.parametrize("value", ["", ".", "nan", "inf", "1e3", "1,5", "--1", 1, True, None])
def test_what_is_no_number_in_text_stays_as_it_is(value: object) -> None:
    assert read_number(value) is value


def test_whole_floats_are_whole_numbers() -> None:
    assert [read_integer(value) for value in (20.0, -1.0, 1e300)] == [20, -1, int(1e300)]
    assert type(read_integer(20.0)) is int
