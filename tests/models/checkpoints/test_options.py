"""Options of configuration files against typed fields: what each type takes, and what is refused."""

import math
from dataclasses import dataclass

import pytest

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.options import (
    MAX_DEPTH,
    Depth,
    Positive,
    checked,
    refuse_unknown,
    require,
)


@dataclass(frozen=True)
class Options:
    """A field of every type that configurations have."""

    width: int = 8
    layers: Depth = 2
    scale: Positive = 1.0
    shift: float | None = None
    widths: tuple[int, ...] = (1,)
    is_sized: bool = False
    name: str = "x"


def test_entries_become_fields_and_others_are_left_out() -> None:
    values = {"width": 3, "layers": MAX_DEPTH, "scale": 2, "shift": -0.5, "widths": [0, 4], "is_sized": True}
    assert checked(Options, values | {"name": "y", "colour": "red"}) == Options(
        3, MAX_DEPTH, 2, -0.5, (0, 4), True, "y"
    )
    assert checked(Options, {"shift": None}) == Options()
    assert checked(Options, {"width": 0, "layers": 0}, minimum=0) == Options(0, 0)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("width", 0, "a whole number, at least 1"),
        ("width", 1.0, "a whole number, at least 1"),
        ("width", True, "a whole number, at least 1"),
        ("width", "8", "a whole number, at least 1"),
        ("width", None, "a whole number, at least 1"),
        ("layers", 0, "a whole number from 1 to 1000"),
        ("layers", MAX_DEPTH + 1, "a whole number from 1 to 1000"),
        ("layers", True, "a whole number from 1 to 1000"),
        ("scale", 0, "a positive number"),
        ("scale", -1.0, "a positive number"),
        ("scale", math.inf, "a positive number"),
        ("scale", math.nan, "a positive number"),
        ("scale", True, "a positive number"),
        ("shift", math.inf, "a number or null"),
        ("shift", "0", "a number or null"),
        ("widths", [1, -1], "a list of whole numbers"),
        ("widths", [1, 2.0], "a list of whole numbers"),
        ("widths", 4, "a list of whole numbers"),
        ("is_sized", 1, "true or false"),
        ("is_sized", None, "true or false"),
        ("name", 7, "a word"),
    ],
)
def test_a_value_of_another_type_is_named(option: str, value: object, expected: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        checked(Options, {option: value})
    assert str(refusal.value) == f"{option} is {value!r}, expected {expected}"


def test_unknown_options_are_refused_if_they_switch_something_on() -> None:
    harmless = {"width": 5, "_class_name": "X", "dropout": 0.0, "lora": None, "heads": [], "gated": False}
    refuse_unknown(harmless, ("width",))
    with pytest.raises(CheckpointError, match=r"^not supported: gated, lora$"):
        refuse_unknown(harmless | {"lora": {"rank": 4}, "gated": True}, ("width",))


def test_an_option_with_one_supported_value() -> None:
    require({"norm": "layer"}, {"norm": "layer", "bias": True})
    require({}, {"bias": True})
    with pytest.raises(CheckpointError, match="bias is False, only True is supported"):
        require({"norm": "layer", "bias": False}, {"norm": "layer", "bias": True})
