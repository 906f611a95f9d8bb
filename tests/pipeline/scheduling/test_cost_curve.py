"""The cost curve: interpolation, correction by ticks, and its measurement by the engine."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.calibration.cost_curve import TICKS, measure_curve
from safelight.pipeline.engine.engine import SampleOutcome
from safelight.pipeline.engine.metering import PROBE_INTERVAL
from safelight.pipeline.scheduling.cost_curve import UNKNOWN, CostCurve
from tests.pipeline.parts import model

CURVE = CostCurve((1e9, 2e9, 4e9), (0.010, 0.015, 0.030))


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(1e9, 0.010), (1.5e9, 0.0125), (2e9, 0.015), (3e9, 0.0225), (4e9, 0.030), (8e9, 0.060), (1e8, 0.005)],
)
def test_seconds_are_interpolated_and_extrapolated(work: float, seconds: float) -> None:
    assert CURVE.seconds_for(work) == pytest.approx(seconds)


@given(work=st.floats(1e8, 1e11), more=st.floats(1.0, 10.0))
def test_more_work_never_costs_less(work: float, more: float) -> None:
    assert CURVE.seconds_for(work * more) >= CURVE.seconds_for(work) * (1 - 1e-9)


def test_best_work_ends_before_a_point_of_lower_throughput() -> None:
    assert CURVE.best_work == float("inf")
    assert CostCurve((1e9, 2e9), (0.01, 0.012)).best_work == float("inf")
    within_noise = CostCurve((1e9, 2e9, 4e9), (0.010, 0.020, 0.0425))
    assert within_noise.best_work == float("inf")
    slow_at_8 = CostCurve((1e9, 2e9, 4e9, 8e9), (0.010, 0.023, 0.040, 0.1))
    assert slow_at_8.best_work == pytest.approx((4e9 * 8e9) ** 0.5)


def test_a_slower_machine_moves_the_slowdown_and_one_slow_tick_does_not() -> None:
    curve = CURVE
    for _ in range(100):
        curve = curve.updated(3e9, 2 * 0.0225)
    assert curve.seconds_for(3e9) == pytest.approx(2 * 0.0225, rel=0.02)
    assert curve.seconds_for(2e9) == pytest.approx(2 * 0.015, rel=0.15)
    assert CURVE.updated(3e9, 10.0).seconds_for(1e9) == pytest.approx(CURVE.seconds_for(1e9), rel=0.05)


def test_a_lasting_large_slowdown_is_learnt() -> None:
    curve = CURVE
    for _ in range(200):
        curve = curve.updated(2e9, 12 * 0.015)
    assert curve.seconds_for(2e9) == pytest.approx(12 * 0.015, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ticks_correct_the_shape(data: st.DataObject) -> None:
    """A wrong curve converges to the true one, and more work never costs less on the way."""
    true, curve = CURVE, CostCurve(CURVE.work, (0.010, 0.029, 0.031))
    for tick in range(1500):
        work = data.draw(st.sampled_from(CURVE.work)) if tick < 50 else CURVE.work[tick % 3]
        curve = curve.updated(work, true.seconds_for(work))
        assert list(curve.seconds) == sorted(curve.seconds)
    for work in CURVE.work:
        assert curve.seconds_for(work) == pytest.approx(true.seconds_for(work), rel=0.03)


def test_probes_correct_a_point_that_was_measured_too_slow() -> None:
    """The largest tick was measured a seventh too slow, and after that only probes are as large."""
    true = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0), (0.0066, 0.0112, 0.019, 0.0336, 0.070))
    curve = CostCurve(true.work, (*true.seconds[:-1], 0.080))
    assert true.best_work == float("inf") > curve.best_work
    for tick in range(1, 3000):
        if tick % PROBE_INTERVAL == 0:
            curve = curve.updated_by_probe(16.0, true.seconds_for(16.0))
        else:
            work = min(curve.best_work, 16.0)
            curve = curve.updated(work, true.seconds_for(work))
    assert curve.best_work == float("inf")


def test_a_guess_follows_the_first_tick_and_is_then_averaged() -> None:
    curve = UNKNOWN.updated(3e9, 900.0)
    assert curve.seconds_for(1e9) == pytest.approx(300.0)
    for _ in range(20):
        curve = curve.updated(3e9, 900.0)
    assert curve.updated(3e9, 9000.0).seconds_for(1e9) < 1.1 * 300.0


@pytest.mark.parametrize(
    ("work", "seconds"),
    [((), ()), ((1.0, 1.0), (1.0, 2.0)), ((1.0,), (0.0,)), ((1.0, 2.0), (1.0,)), ((1.0, 2.0), (2.0, 1.0))],
)
def test_an_invalid_curve_is_refused(work: tuple[float, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cost curve"):
        CostCurve(work, seconds)


def test_measuring_leaves_the_engine_empty() -> None:
    engine = build_engine(model(), max_rows=8, dtype=torch.float32)
    curve = measure_curve(engine, model())
    assert not engine.has_work
    assert len(curve.work) == 4  # 1, 2, 4, 8 rows
    assert [work / curve.work[0] for work in curve.work] == pytest.approx([1, 2, 4, 8])
    assert curve.ticks_seen > 0
    assert not engine._recent_arrivals


def test_a_slow_network_is_measured_once_at_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine(model(), max_rows=8, dtype=torch.float32)
    monkeypatch.setattr("safelight.pipeline.calibration.cost_curve.SECONDS", 0.0)
    monkeypatch.setattr("safelight.pipeline.calibration.cost_curve.LONGEST_VISIT", 0.0)
    ticks: list[int] = []
    step = engine.step

    def recorded_step() -> list[SampleOutcome]:
        outcomes = step()
        assert engine.last_tick is not None
        ticks.append(engine.last_tick.rows)
        return outcomes

    monkeypatch.setattr(engine, "step", recorded_step)
    assert len(measure_curve(engine, model()).work) == 2
    assert ticks == [1] * TICKS + [2] * TICKS


def test_a_calibrated_engine_starts_with_its_curve_and_peak() -> None:
    engine = build_engine(model(), max_rows=8, dtype=torch.float32)
    calibrated = engine.calibrated(CURVE, peak_flops=1e12)
    assert (calibrated.curve, calibrated.peak_flops, calibrated.limits) == (CURVE, 1e12, engine.limits)
    assert engine.curve is UNKNOWN


@pytest.mark.parametrize(("seconds", "expected"), [(10.0, 0.012), (1e-6, 0.010)])
def test_a_probe_moves_its_point_between_its_neighbours_only(seconds: float, expected: float) -> None:
    curve = CostCurve((1.0, 2.0, 4.0), (0.010, 0.011, 0.012), slowdown=1.5)
    probed = curve.updated_by_probe(2.0, seconds)
    assert probed == replace(curve, seconds=(0.010, expected, 0.012))
