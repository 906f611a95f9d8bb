"""A tick's memory is measured, here by the bytes of the tensors that a tick allocates on a processor."""

import pytest

from safelight.models.inspection.sizes import peak_bytes
from safelight.pipeline.calibration.cost_curve import run_rows
from safelight.pipeline.calibration.memory import USABLE, limits_within, memory_limits
from tests.pipeline.parts import engine, model

ROOMY = 10**12


def test_roomy_memory_leaves_the_limits() -> None:
    tested = engine(max_rows=16)
    assert limits_within(tested, model(), peak_bytes, ROOMY) == tested.limits
    assert not tested.has_work


@pytest.mark.parametrize("rows", [8, 12])  # whole products of a processor: 64 tokens
def test_a_tick_of_the_limited_tokens_fits(rows: int) -> None:
    """By the memory of a tick of `rows` rows, and one of two more does not."""
    tested = engine(max_rows=32)
    run_rows(tested, model(), rows)  # what is allocated once is not a tick's
    free = int(peak_bytes(lambda: run_rows(tested, model(), rows)) / USABLE)
    limits = limits_within(tested, model(), peak_bytes, free)
    assert limits.max_rows == tested.limits.max_rows
    assert rows - 1 <= limits.max_tokens / 16 < rows + 2


def test_one_image_always_fits_by_the_limits() -> None:
    assert limits_within(engine(), model(), peak_bytes, 0).max_tokens == 2 * 16


def test_a_processor_is_not_measured() -> None:
    tested = engine()
    assert memory_limits(tested, model()) is tested.limits
