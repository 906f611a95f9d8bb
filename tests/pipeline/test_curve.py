"""The cost curve: what was measured, lines between, corrected by what is seen; and its measurement by the engine itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build.curve import measure_curve
from pipeline.build.engine import build_engine
from pipeline.curve import UNKNOWN, CostCurve
from tests.pipeline.parts import model

CURVE = CostCurve((1e9, 2e9, 4e9), (0.010, 0.015, 0.030))


@pytest.mark.parametrize(
    ("work", "seconds"), [(1e9, 0.010), (1.5e9, 0.0125), (2e9, 0.015), (3e9, 0.0225), (4e9, 0.030), (8e9, 0.060), (1e8, 0.005)]
)
def test_lines_between_what_was_measured_and_beyond(work: float, seconds: float) -> None:
    assert CURVE.seconds_for(work) == pytest.approx(seconds)


@given(work=st.floats(1e8, 1e11), more=st.floats(1.0, 10.0))
def test_more_work_never_costs_less(work: float, more: float) -> None:
    assert CURVE.seconds_for(work * more) >= CURVE.seconds_for(work) * (1 - 1e-9)


def test_the_best_tick_is_the_smallest_that_nothing_beats() -> None:
    assert CURVE.best_work == 2e9
    assert CostCurve((1e9, 2e9), (0.01, 0.012)).best_work == float("inf")
    assert CostCurve((1e9, 2e9, 4e9), (0.010, 0.020, 0.0395)).best_work == 1e9  # a gain not worth the wait


def test_a_slower_machine_is_noticed_and_a_hiccup_is_not() -> None:
    curve = CURVE
    for _ in range(100):
        curve = curve.observed(3e9, 2 * 0.0225)
    assert curve.seconds_for(2e9) == pytest.approx(2 * 0.015, rel=0.02)
    assert CURVE.observed(3e9, 1.0) is CURVE


def test_a_guess_follows_what_is_seen_at_once() -> None:
    curve = UNKNOWN
    for _ in range(12):
        curve = curve.observed(3e9, 900.0)
    assert curve.seconds_for(1e9) == pytest.approx(300.0, rel=0.02)


@pytest.mark.parametrize(
    ("work", "seconds"), [((), ()), ((1.0, 1.0), (1.0, 2.0)), ((1.0,), (0.0,)), ((1.0, 2.0), (1.0,)), ((1.0, 2.0), (2.0, 1.0))]
)
def test_nonsense_is_refused(work: tuple[float, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cost curve"):
        CostCurve(work, seconds)


def test_the_engine_measures_itself_and_is_left_empty() -> None:
    engine = build_engine(model(), max_rows=8, dtype=torch.float32)
    curve = measure_curve(engine, model())
    assert not engine.has_work
    assert len(curve.work) == 4  # 1, 2, 4, 8 rows
    assert [work / curve.work[0] for work in curve.work] == pytest.approx([1, 2, 4, 8])
