"""Checks of the options in a configuration file against the typed fields of a frozen dataclass.

No torch is imported here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
Value = TypeVar("Value")

POSITIVE, MAX_DEPTH = "a positive number", 1000
Positive = Annotated[float, POSITIVE]
# A number of layers. Layers are built before they are compared with the files, so their number is bounded.
Depth = Annotated[int, MAX_DEPTH]
# Keys that say in which dtype the weights were saved or computed. They change nothing: weights are converted.
DTYPE_KEYS = ("dtype", "torch_dtype")
# Options of any part that are known to change what a network computes.
UNSUPPORTED = ("quantization_config",)

logger = logging.getLogger(__name__)


class UnknownOptions(CheckpointError):
    """Options of a configuration file that are not known; `names` are their keys."""

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)
        super().__init__(f"not supported: {', '.join(self.names)}")


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


def refuse_unknown(
    config: Mapping[str, Any], supported: Iterable[str], unsupported: Iterable[str] = ()
) -> None:
    """Raise `CheckpointError` for a key that is not `supported` and whose value switches something on.

    Raises `UnknownOptions`, which an operator may choose to ignore, unless a key is `unsupported`: known to
    change what the network computes.
    """
    allowed = {*supported, *DTYPE_KEYS}
    rest = sorted(
        key for key, value in config.items() if value and not key.startswith("_") and key not in allowed
    )
    if keys := [key for key in rest if key in (*unsupported, *UNSUPPORTED)]:
        raise CheckpointError(f"not supported: {', '.join(keys)}")
    if rest:
        raise UnknownOptions(rest)


def read_known(
    read: Callable[[dict[str, Any]], Value],
    config: dict[str, Any],
    path: Path,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
) -> Value:
    """What `read` makes of `config`, whose unknown options are refused, or logged and ignored.

    Args:
        read: raises `UnknownOptions` for options that it does not know.
        config: the content of a configuration file.
        path: the file.
        options: whether unknown options are ignored.

    Raises:
        CheckpointError: about `path`, as `read` does.
    """
    try:
        unknown = find_unknown(read, config) if options.allow_unknown_config else ()
        if unknown:
            _log_ignored(path, unknown)
        return read({key: value for key, value in config.items() if key not in unknown})
    except UnknownOptions as error:
        raise CheckpointError(
            f"{path}: {error}; --allow-unknown-config (setting allow_unknown_config) ignores unknown options"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def find_unknown(read: Callable[[dict[str, Any]], object], config: dict[str, Any]) -> tuple[str, ...]:
    """The keys of `config` that `read` refuses as unknown; none if it refuses the file for another reason."""
    try:
        read(config)
    except UnknownOptions as error:
        return error.names
    except CheckpointError:
        pass
    return ()


@cache  # once a process
def _log_ignored(path: Path, names: tuple[str, ...]) -> None:
    logger.warning("%s: unknown options are ignored: %s", path, ", ".join(names))


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
