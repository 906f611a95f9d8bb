"""The limits of an engine's ticks, from the model's sizes."""

from dataclasses import replace

import pytest

from safelight.pipeline.assembly.engine import engine_on
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.scheduling.batcher import Limits
from tests.pipeline.parts import model, runner

# A row has a token for 16 x 16 pixels: 16 tokens at the native size, and 48 at the largest.
SIZES = ((64, 64), (192, 64), (32, 64))


@pytest.fixture
def sized() -> ModelInfo:
    return replace(model(), sizes=SIZES)


def test_by_default_a_tick_holds_rows_of_the_native_size_and_any_one_image(sized: ModelInfo) -> None:
    assert engine_on(runner(), sized, max_rows=16).limits == Limits(16, 16 * 16)
    assert engine_on(runner(), sized, max_rows=2).limits == Limits(2, 2 * 48)


def test_a_tick_must_hold_both_rows_of_the_largest_image(sized: ModelInfo) -> None:
    assert engine_on(runner(), sized, max_tokens=96).limits == Limits(16, 96)
    with pytest.raises(ValueError, match="at least 96, for a guided image of 192x64; got 95"):
        engine_on(runner(), sized, max_tokens=95)
