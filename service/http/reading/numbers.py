"""Numbers as text: how they may be written, for the reader and, as patterns, for the OpenAPI schema."""

import re

WHOLE_TEXT = re.compile(r" *(-?[0-9]{1,400})(?:\.0*)? *")
DECIMAL_TEXT = re.compile(r" *-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+) *")


def read_integer(value: object) -> object:
    """The whole number that a text or a float holds; any other value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (match := WHOLE_TEXT.fullmatch(value)):
        return int(match[1])
    return value


def read_number(value: object) -> object:
    """The number that a text holds; any other value as it is."""
    if isinstance(value, str) and DECIMAL_TEXT.fullmatch(value):
        return float(value)
    return value


def whole_numbers(low: int, high: int) -> str:
    """A regular expression for the whole numbers from `low`, 0 or 1, to `high`, with leading zeros."""
    digits = str(high)
    forms = [f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
    for place, digit in enumerate(digits):
        lowest = 1 if place == 0 else 0
        if int(digit) > lowest:
            rest = len(digits) - place - 1
            forms.append(f"{digits[:place]}[{lowest}-{int(digit) - 1}]" + f"[0-9]{{{rest}}}" * (rest > 0))
    forms += [digits] if high else []
    forms += ["0"] if low == 0 else []
    return f"0*(?:{'|'.join(forms)})"


def integer_pattern(low: int, high: int) -> str:
    """A pattern of texts that `read_integer` reads as `low`, 0 or 1, to `high`."""
    return rf"^ *{whole_numbers(low, high)}(?:\.0*)? *$"


def decimals(high: int) -> str:
    """A regular expression for the numbers from 0 to `high`."""
    return rf"(?:{whole_numbers(0, high - 1)}(?:\.[0-9]*)?|\.[0-9]+|0*{high}(?:\.0*)?)"


def number_pattern(high: int) -> str:
    """A pattern of texts that `read_number` reads as 0 to `high`."""
    return f"^ *{decimals(high)} *$"
