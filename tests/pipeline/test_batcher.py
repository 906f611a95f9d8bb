"""Who runs: within the limits, nobody starves, the soonest done first; and what that makes of forecasts."""

import math
import random
import statistics
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batcher import Limits, choose
from pipeline.bench.policies import RULES, simulate
from pipeline.curve import CostCurve
from pipeline.forecast import LATE, finish_times
from pipeline.load import STRETCH, Load, make_load

CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.008, 0.012, 0.020, 0.034, 0.062, 0.130))  # a row is cheapest at 16
LIMITS = Limits(16, 16 * 64)


@dataclass(eq=False)
class One:
    load: Load
    step_index: int = 0
    done_at: float = 0.0


def one(steps: int, rows: int = 2, arrived: float = 0.0, deadline: float = math.inf, tokens: int = 64) -> One:
    return One(make_load([rows] * steps, [float(rows)] * steps, tokens, CURVE, arrived, deadline))


def work_of(chosen: list[One]) -> float:
    return sum(each.load.work[each.step_index] for each in chosen)


def run(coming: list[One], limits: Limits = LIMITS, curve: CostCurve = CURVE) -> None:
    """All of them to their end, each from when it arrives."""
    coming = sorted(coming, key=lambda each: each.load.arrived)
    now, here = 0.0, list[One]()
    while coming or here:
        if not here:
            now = max(now, coming[0].load.arrived)
        while coming and coming[0].load.arrived <= now:
            here.append(coming.pop(0))
        chosen = choose(here, now, limits, curve)
        now += curve.seconds_for(work_of(chosen))
        for each in chosen:
            each.step_index += 1
            each.done_at = now
        here = [each for each in here if each.step_index < each.load.num_ticks]


ONES = st.builds(
    one, steps=st.integers(1, 40), rows=st.integers(1, 2), arrived=st.floats(0.0, 3.0), tokens=st.sampled_from([16, 64, 60, 5000])
)


@given(here=st.lists(ONES, min_size=1, max_size=40), now=st.floats(3.0, 9.0), most=st.integers(2, 32))
def test_a_tick_is_within_its_limits(here: list[One], now: float, most: int) -> None:
    limits = Limits(most, 500)
    chosen = choose(here, now, limits, CURVE)
    assert len(set(map(id, chosen))) == len(chosen) >= 1
    assert min(here, key=lambda each: each.load.due(0, now, 1.0)) in chosen
    if len(chosen) > 1:
        assert sum(each.load.rows[0] for each in chosen) <= most
        assert sum(each.load.rows[0] * each.load.tokens for each in chosen) <= 500


@given(here=st.lists(st.builds(one, steps=st.integers(1, 40), rows=st.integers(1, 2)), min_size=1, max_size=8))
def test_nobody_is_left_out_where_there_is_room(here: list[One]) -> None:
    assert set(map(id, choose(here, 0.0, LIMITS, CURVE))) == set(map(id, here))


def test_more_work_than_is_worth_it_is_left_for_the_next_tick() -> None:
    assert CURVE.best_work == 16.0
    assert work_of(choose([one(20) for _ in range(16)], 0.0, Limits(32, 10**6), CURVE)) == 16.0
    rising = CostCurve((1.0, 32.0), (0.008, 0.06))
    assert work_of(choose([one(20) for _ in range(16)], 0.0, Limits(32, 10**6), rising)) == 32.0


def test_the_soonest_done_goes_first() -> None:
    long, short = one(40), one(4)
    assert choose([long, short], 0.0, Limits(2, 10**6), CURVE) == [short]


def test_who_can_no_longer_be_in_time_goes_last() -> None:
    late, punctual = one(4, deadline=0.01), one(40, deadline=60.0)
    assert choose([late, punctual], 0.0, Limits(2, 10**6), CURVE) == [punctual]


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 40), load=st.floats(0.9, 1.6), short=st.integers(1, 8))
def test_nobody_starves(steps: int, load: float, short: int) -> None:
    """However many short requests come, for however long, more than can be served: those that come later are behind."""
    alone = one(short).load.left[0]
    long = one(steps)
    horizon = STRETCH * long.load.left[0]
    stream = [one(short, arrived=number * alone / load) for number in range(int(2 * horizon * load / alone) + 2)]
    run([long, *stream], Limits(2, 10**6))
    ahead = sum(each.load.arrived <= horizon for each in stream) * alone  # all that can be
    assert long.done_at <= ahead + long.load.left[0] + CURVE.seconds_for(2.0)


def test_a_short_request_behind_long_ones_is_not_blocked() -> None:
    """Eight steps behind four times forty, against five times eight started together; also where a tick holds one sample."""
    for limits in (LIMITS, Limits(2, 10**6)):
        behind, long = one(8, arrived=0.2), [one(40) for _ in range(4)]
        run([*long, behind], limits)
        equal = [one(8) for _ in range(5)]
        run(equal, limits)
        fair = sum(each.done_at for each in equal) / 5
        assert behind.done_at - 0.2 <= 1.5 * fair


@settings(max_examples=50, deadline=None)
@given(here=st.lists(st.builds(one, steps=st.integers(1, 40), rows=st.integers(1, 2)), min_size=1, max_size=24))
def test_forecasts_come_true_if_nobody_comes(here: list[One]) -> None:
    told = finish_times(here, 0.0, LIMITS, CURVE)
    run(here)
    for seconds, each in zip(told, here, strict=True):
        assert seconds == pytest.approx(each.done_at, rel=0.15, abs=0.2)
    assert max(told) == pytest.approx(max(each.done_at for each in here), rel=0.1)


def test_forecasts_reckon_with_those_who_will_come() -> None:
    """Under a steady stream, what is told at arrival is right within an eighth; reckoning with nobody it is a fifth too little."""

    def errors(is_foreseeing: bool) -> list[float]:
        rng, now = random.Random(0), 0.0
        coming, here, seen = list[One](), list[One](), list[Load]()
        told: dict[int, float] = {}
        for _ in range(200):
            now += rng.expovariate(5.5)
            coming.append(one(rng.choice((8, 20, 30, 40)), rng.choice((1, 2, 2)), arrived=now))
        everyone, due, now = list(coming), coming[::-1], 0.0
        while due or here:
            now = max(now, due[-1].load.arrived) if not here else now
            while due and due[-1].load.arrived <= now:
                here.append(due.pop())
                seen = [*seen, here[-1].load][-LATE:]
                told[id(here[-1])] = finish_times(here, now, LIMITS, CURVE, seen if is_foreseeing else ())[-1] + now - here[-1].load.arrived
            chosen = choose(here, now, LIMITS, CURVE)
            now += CURVE.seconds_for(work_of(chosen))
            for each in chosen:
                each.step_index, each.done_at = each.step_index + 1, now
            here = [each for each in here if each.step_index < each.load.num_ticks]
        return [told[id(each)] / (each.done_at - each.load.arrived) - 1 for each in everyone]

    assert statistics.median(map(abs, errors(is_foreseeing=True))) < 0.13
    assert statistics.mean(errors(is_foreseeing=False)) < -0.18


def test_limits_that_nothing_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        Limits(1, 100)
    with pytest.raises(ValueError, match="max_tokens"):
        Limits(2, 0)


def test_the_simulation_of_rules_says_what_the_documentation_says() -> None:
    def worst(rule: str) -> float:
        return max(each.latency / each.load.left[0] for each in simulate(RULES[rule], rate=5.5, seed=0))

    assert worst("due (`batcher.choose`)") < 0.6 * worst("first come, first served")
    assert worst("due (`batcher.choose`)") < 0.5 * worst("most completions a second")
