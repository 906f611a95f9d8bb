"""The fields that requests for edits have beside those of generations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.service.errors import InvalidRequest

STRENGTH_NAMES = ("strength", "denoising_strength")  # ours, and AUTOMATIC1111's
FIDELITIES = ("low", "high")


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
    strengths = (_read_strength(name, fields.get(name)) for name in STRENGTH_NAMES)
    return EditOptions(next((strength for strength in strengths if strength is not None), None)), others


def _read_strength(name: str, value: object) -> float | None:
    """A share, also as text. Raises `InvalidRequest`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    strength = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            strength = float(value)
        except (ValueError, OverflowError):
            strength = math.nan
    if not 0.0 <= strength <= 1.0:
        shown = value if isinstance(value, (int, float)) else str(value)[:100]
        raise InvalidRequest(f"{name} must be a number between 0 and 1; got {shown}.", name)
    return strength
