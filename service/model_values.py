"""Settings with a value for every model: `VALUE`, or `NAME=VALUE,NAME2=VALUE2` by the names of models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")

EVERY_MODEL = ""  # the key of a value without a name
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def parse_model_values(text: str, parse: Callable[[str], Value]) -> dict[str, Value]:
    """The values in `text` by the name of their model; `EVERY_MODEL` for the one without a name.

    Raises `ValueError` for a repeated name, a missing value, and as `parse` does.
    """
    values: dict[str, Value] = {}
    for entry in text.split(",") if text.strip() else []:
        name, equals, value = (part.strip() for part in entry.rpartition("="))
        if not value or (equals and not name):
            raise ValueError(f"must be VALUE or NAME=VALUE,NAME2=VALUE2, got {text!r}")
        if name in values:
            raise ValueError(f"has two values for {name or 'every model'}, got {text!r}")
        values[name] = parse(value)
    return values


def value_for(values: Mapping[str, Value], names: Collection[str]) -> Value | None:
    """The value for the model called by any of `names`, else the one for every model, else None."""
    named = [values[name] for name in names if name in values]
    return named[0] if named else values.get(EVERY_MODEL)


def parse_steps(text: str) -> int:
    """A number of steps; its range is the model's to check."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(f"must be a whole number, got {text!r}")
    return int(text)


def parse_guidance(text: str) -> float:
    """A guidance scale; its range is the model's to check."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number, got {text!r}")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be WIDTHxHEIGHT, got {text!r}")
    return int(match[1]), int(match[2])
