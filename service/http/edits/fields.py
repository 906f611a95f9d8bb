"""The fields that requests for edits have beside those of generations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safelight.service.errors import InvalidRequest
from safelight.service.http.reading.adjustments import adjustment
from safelight.service.http.reading.field_names import WRAPPERS
from safelight.service.http.reading.numbers import read_number
from safelight.service.http.schemas import Adjustment

STRENGTH_NAMES = ("strength", "denoising_strength")  # ours, and AUTOMATIC1111's
FIDELITIES = ("low", "high")
OPTIONS = (*STRENGTH_NAMES, "input_fidelity")
MAX_SHOWN = 100  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class EditOptions:
    """What a request says about its edit; None is the default.

    Attributes:
        strength: From 0 to 1.
        adjustments: Options that came in a wrapper such as `extra_body`.
    """

    strength: float | None = None
    adjustments: tuple[Adjustment, ...] = ()


def take_options(fields: Mapping[str, object]) -> tuple[EditOptions, dict[str, object]]:
    """The options of an edit in `fields`, and the other fields. Raises `InvalidRequest`."""
    others = _without_options(fields)
    for name in WRAPPERS:
        if isinstance(inner := others.get(name), Mapping):
            others[name] = _without_options(inner)
    fidelity = fields.get("input_fidelity")
    if fidelity not in (None, "", *FIDELITIES):
        raise InvalidRequest(f"input_fidelity must be one of {', '.join(FIDELITIES)}.", "input_fidelity")
    strength: float | None = None
    adjustments: list[Adjustment] = []
    for name, value in _strengths(fields):
        other = read_strength(name, value)
        if other is not None and "." in name:
            is_used = strength is None
            note = "read as strength" if is_used else "strength is given as well"
            adjustments.append(adjustment(name, value, other if is_used else None, note))
        strength = other if strength is None else strength
    return EditOptions(strength, tuple(adjustments)), others


def _without_options(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in OPTIONS}


def _strengths(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The fields that may say the strength, those inside a wrapper last, as `extra_body.strength`."""
    for name in STRENGTH_NAMES:
        yield name, fields.get(name)
    for wrapper in WRAPPERS:
        if isinstance(inner := fields.get(wrapper), Mapping):
            for name in STRENGTH_NAMES:
                yield f"{wrapper}.{name}", inner.get(name)


def read_strength(name: str, value: object) -> float | None:
    """A share, also as text; None if it is blank. Raises `InvalidRequest`."""
    if value is None or (isinstance(value, str) and not value.strip(" ")):
        return None
    strength = read_number(value)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0.0 <= strength <= 1.0:
        raise InvalidRequest(f"{name} must be a number between 0 and 1; got {str(value)[:MAX_SHOWN]}.", name)
    return float(strength)
