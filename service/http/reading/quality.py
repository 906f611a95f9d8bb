"""The number of steps of OpenAI's `quality`, for requests that do not say it themselves."""

import math
from collections.abc import Callable
from fractions import Fraction

from safelight.pipeline.catalog.model_info import MAX_STEPS
from safelight.pipeline.errors import InvalidParams
from safelight.service.http.schemas import Quality, QualitySynonym

# Steps as a multiple of the model's default.
STEPS: dict[Quality, Fraction] = {
    "low": Fraction(1, 2),
    "medium": Fraction(1),
    "high": Fraction(2),
    "xhigh": Fraction(3),
    "max": Fraction(4),
}
# `auto`, and the names of OpenAI's retired models, mean one of these.
TIERS: dict[Quality | QualitySynonym, Quality] = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
    "auto": "medium",
    "standard": "medium",
    "hd": "high",
}


def steps_of(quality: Quality | QualitySynonym, default: int, check: Callable[[int], object]) -> int:
    """The number of steps of `quality`.

    `check` raises `InvalidParams` for a number of steps that the solver does not allow: a low quality has as
    few as it allows then.
    """
    steps = _steps(TIERS[quality], default)
    while steps < default:
        try:
            check(steps)
            break
        except InvalidParams:
            steps += 1
    return steps


def quality_of(steps: int, default: int) -> Quality:
    """The best quality that has at most `steps`, which is `low` at least."""
    reached = [quality for quality in STEPS if steps >= _steps(quality, default)]
    return reached[-1] if reached else "low"


def _steps(quality: Quality, default: int) -> int:
    return max(1, min(MAX_STEPS, math.ceil(default * STEPS[quality])))
