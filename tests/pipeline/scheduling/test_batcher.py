"""Which samples run in a tick, and how well forecasts by the same rules come true."""

import math
import random
import statistics
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.pipeline.capacity.comparison import device, order
from safelight.pipeline.scheduling.batcher import Limits, select_batch
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.forecast import RECENT_ARRIVALS, finish_times
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.simulation import Queue, Samples, SimulatedSample, simulate
from safelight.pipeline.scheduling.workload import MAX_SLOWDOWN, SampleWorkload, make_workload

# A row is cheapest at 16.
CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.008, 0.012, 0.020, 0.034, 0.062, 0.150))
LIMITS = Limits(16, 16 * 64)


def make_sample(
    steps: int, rows: int = 2, arrived: float = 0.0, deadline: float = math.inf, tokens: int = 64
) -> SimulatedSample:
    return SimulatedSample(
        make_workload([rows] * steps, [float(rows)] * steps, tokens, CURVE, arrived, deadline)
    )


def work_of(samples: list[SimulatedSample]) -> float:
    return sum(sample.workload.work[sample.step_index] for sample in samples)


def make_queue(samples: list[SimulatedSample]) -> Queue:
    queue = Queue()
    for sample in samples:
        queue.add(sample)
    return queue


def run(samples: list[SimulatedSample], limits: Limits = LIMITS, curve: CostCurve = CURVE) -> None:
    """Run all samples to their end, selected as the engine does."""
    simulate(samples, partial(select_next_batch, limits=limits, curve=curve), curve)


SAMPLES = st.builds(
    make_sample,
    steps=st.integers(1, 40),
    rows=st.integers(1, 2),
    arrived=st.floats(0.0, 3.0),
    tokens=st.sampled_from([16, 64, 60, 5000]),
)


SMALL_SAMPLES = st.builds(make_sample, steps=st.integers(1, 40), rows=st.integers(1, 2))


@given(
    samples=st.lists(SAMPLES, min_size=1, max_size=40),
    now=st.floats(3.0, 9.0),
    max_rows=st.integers(2, 32),
)
def test_a_tick_is_within_its_limits(samples: list[SimulatedSample], now: float, max_rows: int) -> None:
    selected = select_batch(samples, now, Limits(max_rows, 500), CURVE)
    assert len(set(map(id, selected))) == len(selected) >= 1
    assert min(samples, key=lambda sample: sample.workload.priority(0, now, 1.0)) in selected
    if len(selected) > 1:
        assert sum(sample.workload.rows[0] for sample in selected) <= max_rows
        assert sum(sample.workload.rows[0] * sample.workload.tokens for sample in selected) <= 500


@given(samples=st.lists(SMALL_SAMPLES, min_size=1, max_size=8))
def test_every_sample_runs_while_there_is_room(samples: list[SimulatedSample]) -> None:
    assert set(map(id, select_batch(samples, 0.0, LIMITS, CURVE))) == set(map(id, samples))


def test_a_tick_takes_no_more_work_than_is_worth_it() -> None:
    assert 16.0 < CURVE.best_work < 32.0
    assert (
        16.0
        <= work_of(select_batch([make_sample(20) for _ in range(16)], 0.0, Limits(32, 10**6), CURVE))
        <= 22.0
    )
    rising = CostCurve((1.0, 32.0), (0.008, 0.06))
    assert work_of(select_batch([make_sample(20) for _ in range(16)], 0.0, Limits(32, 10**6), rising)) == 32.0


def test_the_shortest_goes_first() -> None:
    long, short = make_sample(40), make_sample(4)
    assert select_batch([long, short], 0.0, Limits(2, 10**6), CURVE) == [short]


def test_a_sample_that_will_miss_its_deadline_goes_last() -> None:
    late, punctual = make_sample(4, deadline=0.01), make_sample(40, deadline=60.0)
    assert select_batch([late, punctual], 0.0, Limits(2, 10**6), CURVE) == [punctual]


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 40), load=st.floats(0.9, 1.6), short=st.integers(1, 8))
def test_no_sample_starves(steps: int, load: float, short: int) -> None:
    """Short requests that arrive after the due time of a long one follow it, however many there are."""
    alone = make_sample(short).workload.seconds_left[0]
    long = make_sample(steps)
    horizon = MAX_SLOWDOWN * long.workload.seconds_left[0]
    stream = [
        make_sample(short, arrived=number * alone / load)
        for number in range(int(2 * horizon * load / alone) + 2)
    ]
    run([long, *stream], Limits(2, 10**6))
    ahead = sum(sample.workload.arrived <= horizon for sample in stream) * alone  # at most
    assert long.done_at <= ahead + long.workload.seconds_left[0] + CURVE.seconds_for(2.0)


def test_a_short_request_behind_long_ones_is_not_blocked() -> None:
    """8 steps behind four samples of 40 take at most 1.5 times as long as among four others of 8.

    Also where a tick holds one sample.
    """
    for limits in (LIMITS, Limits(2, 10**6)):
        behind, long = make_sample(8, arrived=0.2), [make_sample(40) for _ in range(4)]
        run([*long, behind], limits)
        equal = [make_sample(8) for _ in range(5)]
        run(equal, limits)
        fair = sum(sample.done_at for sample in equal) / 5
        assert behind.done_at - 0.2 <= 1.5 * fair


@settings(max_examples=50, deadline=None)
@given(samples=st.lists(SMALL_SAMPLES, min_size=1, max_size=100))
def test_forecasts_come_true_without_new_arrivals(samples: list[SimulatedSample]) -> None:
    """However many samples wait, also more than may run."""
    queue = make_queue(samples)
    forecasts = dict(zip(queue, finish_times([], queue, 0.0, LIMITS, CURVE), strict=True))
    run(samples)
    for sample, seconds in forecasts.items():
        assert seconds == pytest.approx(sample.done_at, rel=0.15, abs=0.2)
    assert max(forecasts.values()) == pytest.approx(max(sample.done_at for sample in samples), rel=0.1)


def forecasts_and_latencies(
    samples: list[SimulatedSample], is_extrapolating: bool = True
) -> list[tuple[float, float]]:
    """The latency of each sample as forecast when it arrived, and as it was."""
    forecasts: dict[SimulatedSample, float] = {}
    arrivals: list[SampleWorkload] = []

    def forecast(sample: SimulatedSample, running: Samples, queue: Queue, now: float) -> None:
        arrivals.append(sample.workload)
        index = [*running, *queue].index(sample)
        recent = arrivals[-RECENT_ARRIVALS:] if is_extrapolating else ()
        seconds = finish_times(running, queue, now, LIMITS, CURVE, recent)[index]
        forecasts[sample] = seconds + now - sample.workload.arrived

    simulate(samples, partial(select_next_batch, limits=LIMITS, curve=CURVE), CURVE, on_arrival=forecast)
    return [(forecasts[sample], sample.latency) for sample in samples]


def test_forecasts_expect_future_arrivals() -> None:
    """In a steady stream, forecasts are right within an eighth; without extrapolation a fifth too low."""

    def errors(is_extrapolating: bool) -> list[float]:
        rng, time, samples = random.Random(0), 0.0, list[SimulatedSample]()
        for _ in range(200):
            time += rng.expovariate(5.5)
            samples.append(make_sample(rng.choice((8, 20, 30, 40)), rng.choice((1, 2, 2)), arrived=time))
        pairs = forecasts_and_latencies(samples, is_extrapolating)
        return [forecast / latency - 1 for forecast, latency in pairs]

    assert statistics.median(map(abs, errors(is_extrapolating=True))) < 0.13
    assert statistics.mean(errors(is_extrapolating=False)) < -0.18


@pytest.mark.parametrize("interval", [0.0, 0.002, 0.05])
def test_a_burst_is_not_taken_for_a_stream(interval: float) -> None:
    """Thirty samples at once, or nearly, and none after them: the forecast of the last is about right."""
    samples = [make_sample(20, arrived=number * interval) for number in range(30)]
    forecast, latency = forecasts_and_latencies(samples)[-1]
    assert forecast == pytest.approx(latency, rel=0.3)


def test_no_stream_is_expected_after_a_pause() -> None:
    burst = [make_sample(8, arrived=number * 0.1) for number in range(20)]
    forecast, latency = forecasts_and_latencies([*burst, make_sample(40, arrived=60.0)])[-1]
    assert forecast == pytest.approx(latency, rel=0.15)


def test_a_short_request_is_fast_however_many_wait() -> None:
    """Behind hundreds of long samples, its latency and the forecast are near its time alone."""
    long = [make_sample(40) for _ in range(300)]
    (*_, (forecast, latency)) = forecasts_and_latencies([*long, make_sample(8, arrived=0.5)])
    assert latency < 2.0
    assert forecast == pytest.approx(latency, rel=0.3)


def test_the_queue_is_sorted_by_priority_at_any_slowdown() -> None:
    rng = random.Random(1)
    samples = [make_sample(rng.randint(1, 40), arrived=rng.random()) for _ in range(50)]
    queue = make_queue(samples)
    for slowdown in (1.0, 1.05, 3.0, 0.2):
        by_priority = sorted(samples, key=lambda sample: sample.workload.priority(0, 1.0, slowdown))
        assert queue.earliest_due(7, 1.0, slowdown) == by_priority[:7]
    queue.remove(samples[9])
    assert samples[9] not in list(queue)
    assert len(queue) == 49
    with pytest.raises(ValueError, match="not in the queue"):
        queue.remove(samples[9])


def test_the_queue_finds_samples_by_key_in_order_of_arrival() -> None:
    samples = [make_sample(steps) for steps in (30, 10, 20)]
    queue = WaitingQueue[SimulatedSample](key=lambda sample: sample.workload.num_ticks)
    for sample in samples:
        queue.add(sample)
    assert list(queue.by_arrival()) == samples
    assert list(queue) == [samples[1], samples[2], samples[0]]
    assert 10 in queue and queue.get(10) is samples[1]
    queue.remove(samples[1])
    assert 10 not in queue and queue.get(10) is None
    assert list(queue.by_arrival()) == [samples[0], samples[2]]


def test_late_samples_wait_behind_punctual_ones() -> None:
    late, punctual = (
        [make_sample(2, deadline=0.01) for _ in range(9)],
        [make_sample(40, deadline=1e3) for _ in range(3)],
    )
    queue = make_queue([*late, *punctual])
    assert queue.earliest_due(4, 1.0, 1.0) == [*punctual, late[0]]


def test_limits_below_one_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        Limits(1, 100)
    with pytest.raises(ValueError, match="max_tokens"):
        Limits(2, 0)


def test_the_documented_comparison_of_rules_holds() -> None:
    def worst(rule: str) -> float:
        return max(
            sample.latency / sample.workload.seconds_left[0]
            for sample in simulate(order.trace(5.5, seed=0), order.RULES[rule], device.CURVE)
        )

    due = next(rule for rule in order.RULES if rule.startswith("due"))
    assert worst(due) < 0.6 * worst("first come, first served")
    assert worst(due) < 0.5 * worst("most completions a second")


def test_a_sample_that_does_not_fit_is_passed_over() -> None:
    first, large, last = make_sample(2), make_sample(3, tokens=5000), make_sample(4)
    assert select_batch([first, large, last], 0.0, Limits(16, 500), CURVE) == [first, last]


def test_due_time_and_lateness_follow_the_slowdown() -> None:
    """A tick alone takes 0.012 s, at any slowdown of the curve by which the workload was made."""
    for curve in (CURVE, replace(CURVE, slowdown=2.0)):
        workload = make_workload([2] * 10, [2.0] * 10, 64, curve, arrived=5.0, deadline=6.0)
        assert workload.seconds_left[0] == pytest.approx(0.12)
        for slowdown, is_late in ((1.0, False), (4.0, True)):
            will_be_late, _, due = workload.priority(0, 5.6, slowdown)
            assert will_be_late is is_late
            assert due == pytest.approx(5.0 + MAX_SLOWDOWN * 0.12 * slowdown)


def test_a_pause_after_the_last_arrival_slows_the_expected_stream() -> None:
    arrivals = [make_sample(8, arrived=number * 0.1).workload for number in range(16)]

    def seconds(now: float) -> tuple[float, float]:
        """Until a long sample finishes, with and without expected arrivals."""
        queue = [make_sample(40, arrived=now)]
        (expecting,), (alone,) = (finish_times([], queue, now, LIMITS, CURVE, a) for a in (arrivals, []))
        return expecting, alone

    expecting, alone = seconds(now=1.5)
    assert expecting > 1.2 * alone
    expecting, alone = seconds(now=61.5)  # the next arrival is expected four seconds later
    assert expecting == alone < 4.0


def test_the_table_of_policies_has_every_rule_at_every_rate() -> None:
    rows = list(order.rows((2.0,)))
    assert [row[:2] for row in rows] == [["2", rule] for rule in order.RULES]
    for row in rows:
        mean, p95, slowdown_p95, slowdown_max = map(float, row[2:])
        assert 0.1 < mean < p95 and 1.0 <= slowdown_p95 <= slowdown_max
