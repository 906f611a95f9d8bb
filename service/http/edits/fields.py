"""The fields that requests for edits have beside those of generations."""

from collections.abc import Mapping
from dataclasses import dataclass

from safelight.service.errors import InvalidRequest
from safelight.service.http.reading.numbers import read_number

STRENGTH_NAMES = ("strength", "denoising_strength")  # ours, and AUTOMATIC1111's
FIDELITIES = ("low", "high")
MAX_SHOWN = 100  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class EditOptions:
    """What a request says about its edit; None is the default."""

    strength: float | None = None


def take_options(fields: Mapping[str, object]) -> tuple[EditOptions, dict[str, object]]:
    """The options of an edit in `fields`, and the other fields. Raises `InvalidRequest`."""
    own_names = (*STRENGTH_NAMES, "input_fidelity")
    others = {name: value for name, value in fields.items() if name not in own_names}
    fidelity = fields.get("input_fidelity")
    if fidelity not in (None, "", *FIDELITIES):
        raise InvalidRequest(f"input_fidelity must be one of {', '.join(FIDELITIES)}.", "input_fidelity")
    strengths = [read_strength(name, fields.get(name)) for name in STRENGTH_NAMES]
    return EditOptions(next((strength for strength in strengths if strength is not None), None)), others


def read_strength(name: str, value: object) -> float | None:
    """A share, also as text; None if it is blank. Raises `InvalidRequest`."""
    if value is None or (isinstance(value, str) and not value.strip(" ")):
        return None
    strength = read_number(value)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0.0 <= strength <= 1.0:
        raise InvalidRequest(f"{name} must be a number between 0 and 1; got {str(value)[:MAX_SHOWN]}.", name)
    return float(strength)
