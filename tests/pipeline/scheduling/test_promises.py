"""Admission by promise: what is let in is done in time, and the device is kept full."""

import math
from dataclasses import replace

import pytest

from safelight.pipeline.benchmark import overload
from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS
from safelight.pipeline.params import Share, Urgency
from safelight.pipeline.scheduling.batcher import select_batch
from safelight.pipeline.scheduling.calibration import PRIOR, WINDOW, RatioQuantiles
from safelight.pipeline.scheduling.promises import AdmissionControl, Demand, Forecast
from safelight.pipeline.scheduling.simulation import SimulatedSample
from safelight.pipeline.scheduling.workload import make_workload

FULL_TICK = CURVE.seconds_for(LIMITS.max_rows)
SECONDS = 30.0  # of the simulations


@pytest.fixture(autouse=True)
def short_simulations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "SECONDS", SECONDS)


def make_control() -> AdmissionControl:
    control = AdmissionControl()
    control.update(CURVE, LIMITS.max_rows)
    return control


def make_demand(
    name: str, seconds: float = 10.0, ticks: int = 20, rows: int = 2, **changes: object
) -> Demand:
    """A demand that arrives at 0."""
    demand = Demand(name, ticks, float(ticks * rows), seconds, 0.0)
    return replace(demand, **changes)  # type: ignore[arg-type]


def offer_all(control: AdmissionControl, count: int, **changes: object) -> list[Forecast]:
    demands = [make_demand(f"first {k}", **changes) for k in range(count)]  # type: ignore[arg-type]
    return [control.offer(demand, 0.0) for demand in demands]


@pytest.mark.parametrize("callers", [1, 10])
@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
def test_overload_leaves_goodput_and_promises(callers: int, error: float) -> None:
    """Five times the capacity, also where ticks take longer or shorter than is believed."""
    result = overload.run(5.0, 10.0, callers, error)
    assert result.goodput >= 0.9
    assert result.within >= 0.95
    assert result.refused > 0.5


def test_below_the_capacity_nearly_all_are_let_in() -> None:
    result = overload.run(0.5, 30.0, 1)
    assert result.refused == 0
    assert result.within == 1.0


def test_a_lone_sample_is_forecast_as_it_will_be() -> None:
    forecast = make_control().offer(make_demand("only"), 0.0)
    assert forecast.is_admitted
    assert forecast.seconds == pytest.approx(20 * CURVE.seconds_for(2.0))


def test_the_queue_is_bounded_by_its_seconds() -> None:
    control = make_control()
    forecasts = offer_all(control, 200)
    assert 5 < sum(forecast.is_admitted for forecast in forecasts) < 100
    assert control.backlog_seconds < 10.0
    refused = forecasts[-1]
    assert 0 < refused.retry_seconds < 2.0
    assert control.offer(make_demand("patient", seconds=12.0), 0.0).is_admitted


def test_a_sample_that_would_break_the_promise_of_another_is_refused() -> None:
    """It would be done in time itself, but goes before others that can wait no longer."""
    control = make_control()
    offer_all(control, 200)
    newcomer = make_demand("urgent", seconds=3.0, ticks=25, rows=LIMITS.max_rows)
    assert not control.quote(newcomer, 0.0).is_admitted
    assert make_control().quote(newcomer, 0.0).is_admitted


def test_a_caller_with_an_idle_share_is_let_in_beside_a_full_one() -> None:
    control = make_control()
    refused = offer_all(control, 200, share=Share("greedy"))[-1]
    polite = control.offer(make_demand("polite", share=Share("polite")), 0.0)
    assert not refused.is_admitted
    assert polite.is_admitted
    assert polite.seconds < refused.seconds / 2


def test_progress_and_leaving_make_room() -> None:
    control = make_control()
    offer_all(control, 200)
    before = control.backlog_seconds
    control.progress("first 0", 10)
    assert control.backlog_seconds == pytest.approx(before - 10 * FULL_TICK * 2 / LIMITS.max_rows)
    control.leave("first 0", 1.0, is_done=True)
    control.leave("first 0", 1.0, is_done=True)
    assert control.backlog_seconds == pytest.approx(before - 20 * FULL_TICK * 2 / LIMITS.max_rows)
    control.clear()
    assert len(control) == 0
    assert control.offer(make_demand("next"), 1.0).is_admitted


def test_a_default_promise_is_longer_for_a_long_request() -> None:
    demand = make_demand("long", seconds=0.5, ticks=150)
    assert not make_control().quote(demand, 0.0).is_possible
    forecast = make_control().quote(replace(demand, is_default=True), 0.0)
    assert forecast.is_admitted
    assert forecast.limit >= 2 * 150 * FULL_TICK


def test_patience_keeps_a_part_of_the_queue_free() -> None:
    control = make_control()
    offer_all(control, 200, patience=0.5)
    assert control.backlog_seconds < 6.0
    assert control.offer(make_demand("returning"), 0.0).is_admitted


def test_what_was_let_in_before_is_let_in_again() -> None:
    control = make_control()
    offer_all(control, 200)
    assert control.offer(make_demand("again", is_certain=True), 0.0).is_admitted


def test_slow_devices_promise_less() -> None:
    """After images took twice as long as forecast, fewer are let in."""
    control, count = make_control(), []
    for factor in (1.0, 2.0):
        for k in range(64):
            forecast = control.offer(make_demand(f"{factor} {k}", limit=math.inf), 0.0)
            control.leave(f"{factor} {k}", factor * forecast.seconds, is_done=True)
        count.append(sum(forecast.is_admitted for forecast in offer_all(control, 200)))
        control.clear()
    assert count[1] < 0.7 * count[0]


def test_quantiles_forget() -> None:
    ratios = RatioQuantiles()
    assert ratios.quantile(0.5) == sorted(PRIOR)[len(PRIOR) // 2]
    for _ in range(2 * WINDOW):
        ratios.add(2.0)
    assert ratios.quantile(0.01) == ratios.quantile(0.99) == 2.0
    for _ in range(WINDOW):
        ratios.add(1e9)
    assert ratios.quantile(0.01) == 4.0


def sample(urgency: Urgency, ticks: int = 20) -> SimulatedSample:
    workload = make_workload([2] * ticks, [2.0] * ticks, 64, CURVE, 0.0, urgency=urgency)
    return SimulatedSample(workload)


def test_the_batcher_prefers_levels_then_who_must_start() -> None:
    late_start = sample(Urgency(20 * FULL_TICK + 0.1), ticks=20)
    short, low = sample(Urgency(100.0), ticks=5), sample(Urgency(100.0, level=-1), ticks=1)
    job, high = sample(Urgency(100.0, is_background=True), ticks=1), sample(Urgency(level=1), ticks=100)
    limits = replace(LIMITS, max_rows=2)
    order, waiting = [], [low, job, short, late_start, high]
    while waiting:
        [chosen] = select_batch(waiting, 0.0, limits, CURVE)
        order.append(chosen)
        waiting.remove(chosen)
    assert order == [high, late_start, short, job, low]
