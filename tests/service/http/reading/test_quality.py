"""The number of steps of each quality, and the quality of a number of steps."""

import pytest

from safelight.pipeline.errors import InvalidParams
from safelight.service.http.reading.quality import STEPS, quality_of, steps_of


def allow(_: int) -> None:
    """Any number of steps."""


@pytest.mark.parametrize("default", [1, 2, 3, 4, 20, 28, 150, 200])
def test_steps_grow_with_the_quality_within_the_limits(default: int) -> None:
    steps = [steps_of(quality, default, allow) for quality in STEPS]
    assert steps == sorted(steps)
    assert steps[1] == default and 1 <= steps[0] <= default and steps[-1] == min(200, 4 * default)


def test_the_steps_of_a_model_of_twenty() -> None:
    steps = {"low": 10, "medium": 20, "high": 40, "xhigh": 60, "max": 80}
    assert {quality: steps_of(quality, 20, allow) for quality in STEPS} == steps
    assert {quality_of(number, 20) for number in (1, 10, 19)} == {"low"}
    assert {quality: quality_of(number, 20) for quality, number in steps.items()} == {
        name: name for name in steps
    }
    assert quality_of(39, 20) == "medium" and quality_of(200, 20) == "max"


def test_a_low_quality_has_as_few_steps_as_the_solver_allows() -> None:
    def check(steps: int) -> None:
        if steps < 3:
            raise InvalidParams("num_steps", "too few")

    assert steps_of("low", 4, check) == 3
    assert (
        steps_of("low", 2, check) == 2
    )  # the default itself: the request is refused then, as without a quality
