"""Checks of the options in a configuration file against the typed fields of a frozen dataclass.

No torch is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from safelight.models.checkpoints.json_files import CheckpointError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

POSITIVE, MAX_DEPTH = "a positive number", 1000
Positive = Annotated[float, POSITIVE]
# A number of layers. Layers are built before they are compared with the files, so their number is bounded.
Depth = Annotated[int, MAX_DEPTH]


def checked(config_class: type[Options], options: Mapping[str, Any], *, minimum: int = 1) -> Options:
    """Build a `config_class` from the entries of `options` that it has fields for.

    Whole numbers must be at least `minimum`, other numbers finite. A list is read as a tuple.
    Raises `CheckpointError` for a value that does not have the type of its field.
    """
    hints = get_type_hints(config_class, include_extras=True)
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if name in hints
    }
    for name, value in values.items():
        if not _has_type(value, hints[name], minimum):
            raise CheckpointError(
                f"{name} is {options[name]!r}, expected {_describe_expected(hints[name], minimum)}"
            )
    return config_class(**values)


def refuse_unknown(config: Mapping[str, Any], supported: Iterable[str]) -> None:
    """Raise `CheckpointError` for a key that is not `supported` and whose value switches something on."""
    unknown = sorted(
        key for key, value in config.items() if value and not key.startswith("_") and key not in supported
    )
    if unknown:
        raise CheckpointError(f"not supported: {', '.join(unknown)}")


def require(config: Mapping[str, Any], fixed: Mapping[str, object]) -> None:
    """Raise `CheckpointError` for an option that is not at its only supported value, given in `fixed`."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key} is {config[key]!r}, only {value!r} is supported")


def _has_type(value: object, hint: Any, minimum: int) -> bool:
    if isinstance(hint, UnionType):
        return any(_has_type(value, option, minimum) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(hint)[0], 0) for item in value)
    if hint is int:
        return type(value) is int and value >= minimum
    if hint == Depth:
        return type(value) is int and minimum <= value <= MAX_DEPTH
    if hint is float or hint == Positive:
        if type(value) is int or type(value) is float:
            return math.isfinite(value) and (hint is float or value > 0)
        return False
    return type(value) is hint


def _describe_expected(hint: Any, minimum: int) -> str:
    """What a value of type `hint` must be, for an error message."""
    if isinstance(hint, UnionType):
        return " or ".join(_describe_expected(option, minimum) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of whole numbers"
    if hint == Depth:
        return f"a whole number from {minimum} to {MAX_DEPTH}"
    if hint == Positive:
        return POSITIVE
    return {
        int: f"a whole number, at least {minimum}",
        float: "a number",
        bool: "true or false",
        str: "a word",
        NoneType: "null",
    }[hint]
