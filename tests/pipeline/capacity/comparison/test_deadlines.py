"""Policies under deadlines: what each promises to do, and the figures of the table."""

import math
import random
from itertools import pairwise

import pytest

from safelight.pipeline.capacity.comparison import deadlines
from safelight.pipeline.capacity.comparison.deadlines import (
    Outcome,
    jain,
    max_min,
    row,
    run,
    run_devices,
)
from safelight.pipeline.capacity.comparison.device import CURVE, LIMITS
from safelight.pipeline.capacity.comparison.policies import POLICIES, rows_of, work_left
from safelight.pipeline.capacity.comparison.traffic import CAPACITY, TRAFFIC, Traffic, arrivals
from safelight.pipeline.scheduling.simulation import (
    FairPolicy,
    Queue,
    RulePolicy,
    Samples,
    SimulatedSample,
    fair_rule,
    simulate,
)

SECONDS = 12.0
BY_NAME = {traffic.name: traffic for traffic in TRAFFIC}
OVERLOAD = BY_NAME["overload"]
REFUSING = [name for name in POLICIES if name.endswith("refusing what would be late")]


@pytest.mark.parametrize("policy", POLICIES)
def test_ticks_are_within_their_limits_and_nothing_is_lost(policy: str) -> None:
    subject, offered = POLICIES[policy](), list(arrivals(OVERLOAD, 1, SECONDS, seed=3))

    def checked(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        selected = subject.select(running, queue, now)
        subject.start_ticks(selected, running, queue, 1)
        assert 1 <= len(set(map(id, selected))) == len(selected)
        assert sum(map(rows_of, selected)) <= LIMITS.max_rows
        return selected

    done = simulate(offered, checked, CURVE, admits=subject.admits)
    assert all(sample.is_done for sample in done)
    assert len(done) < len(offered) if policy in REFUSING else len(done) == len(offered)


def test_what_is_refused_would_mostly_have_been_late() -> None:
    """Those who promise keep it for nearly all that they let in; the same order without refusals does not."""
    for policy in REFUSING:
        order = policy.removesuffix(", refusing what would be late")
        refusing, admitting = run(policy, OVERLOAD, 1, SECONDS), run(order, OVERLOAD, 1, SECONDS)
        assert refusing.kept > 0.9 > 0.6 > admitting.kept
        assert refusing.total.in_time > 0.85 * admitting.total.in_time


def test_below_capacity_all_policies_keep_nearly_all_deadlines() -> None:
    """On one device arrivals at random are sometimes too many for a while."""
    for policy in POLICIES:
        outcome = run(policy, BY_NAME["below-capacity"], 1, SECONDS)
        assert outcome.kept > 0.9 and outcome.total.attainment > 0.85 and outcome.fairness > 0.95


def test_only_shares_are_fair_under_overload() -> None:
    fairness = {policy: run(policy, OVERLOAD, 1, SECONDS).fairness for policy in POLICIES}
    assert fairness.pop("fair shares") > 0.9
    assert fairness.pop("fair shares, refusing what would be late") > 0.68
    assert max(fairness.values()) < 0.65


def test_orders_differ_as_they_should() -> None:
    """Under overload those that give up what is late do more in time, the shortest first most of all."""
    in_time = {policy: run(policy, OVERLOAD, 1, SECONDS).total.in_time for policy in POLICIES}
    for policy in ("after TetriServe", "after GENSERVE"):
        assert (
            in_time["shortest remaining work"] > in_time[policy] > 1.4 * in_time["first come, first served"]
        )
    shortest = run("shortest remaining work", OVERLOAD, 1, SECONDS)
    assert shortest.longest.attainment < 0.3 < shortest.total.attainment


def test_one_device_does_what_the_plain_simulation_does() -> None:
    """Without expiry, with a selection at every tick."""
    offered = list(arrivals(BY_NAME["below-capacity"], 1, SECONDS, seed=5))
    expected = sorted(sample.latency for sample in simulate(offered, fair_rule(LIMITS, CURVE), CURVE))
    outcome = Outcome()
    fresh = arrivals(BY_NAME["below-capacity"], 1, SECONDS, seed=5)
    run_devices(fresh, [FairPolicy(LIMITS, CURVE)], outcome, seed=0, stride=1)
    assert sorted(outcome.latencies) == pytest.approx(expected)


def test_samples_leave_at_their_deadline() -> None:
    """Whatever is done late has had only its last ticks after it; the rest of the late ones is gone."""
    outcome = run("first come, first served", OVERLOAD, 1, SECONDS)
    assert outcome.refused == 0 and len(outcome.latencies) < outcome.total.asked
    longest_alone = max(sample.workload.seconds_left[0] for sample in arrivals(OVERLOAD, 1, SECONDS, 0))
    full = CURVE.seconds_for(LIMITS.max_rows)
    assert max(outcome.latencies) < deadlines_times_alone() * longest_alone + full


def deadlines_times_alone() -> float:
    sample = next(arrivals(OVERLOAD, 1, SECONDS, 0))
    return (sample.workload.deadline - sample.workload.arrived) / sample.workload.seconds_left[0]


@pytest.mark.parametrize("traffic", TRAFFIC, ids=lambda traffic: traffic.name)
def test_traffic_has_its_load_and_rises_to_its_peak(traffic: Traffic) -> None:
    times = [sample.workload.arrived for sample in arrivals(traffic, 100, 40.0, seed=0)]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert len(times) == pytest.approx(traffic.load * CAPACITY * 100 * 40.0, rel=0.05)
    steps = [traffic.shape(number / 400, number / 10) for number in range(400)]
    assert max(steps) == pytest.approx(traffic.peak) and min(steps) >= 0.0


def test_many_devices_share_the_requests_by_their_load() -> None:
    """Routing by two random ones leaves no device idle and none with much more than its part."""
    counts = [0] * 8
    policies = []
    for number in range(8):

        def admits(*_: object, number: int = number) -> bool:
            counts[number] += 1
            return True

        policies.append(RulePolicy(fair_rule(LIMITS, CURVE), admits))
    outcome = Outcome()
    run_devices(arrivals(OVERLOAD, 8, SECONDS, 0), policies, outcome, seed=1, stride=4)
    assert sum(counts) == outcome.total.asked and min(counts) > 0.85 * max(counts)


def test_a_coarse_selection_changes_little() -> None:
    for policy in ("fair shares", "after TetriServe"):
        fine, coarse = (run(policy, OVERLOAD, 4, SECONDS, stride) for stride in (1, deadlines.COARSE_STRIDE))
        assert coarse.total.attainment == pytest.approx(fine.total.attainment, abs=0.04)


def test_a_row_adds_up() -> None:
    devices, traffic, _, goodput, attainment, _, kept, _, refused, p50, p95 = row("fair shares", OVERLOAD, 1)
    assert (devices, traffic, refused) == ("1", "overload", "0%") and attainment == kept
    assert float(goodput) == pytest.approx(float(attainment[:-1]) / 100 * OVERLOAD.load * CAPACITY, rel=0.1)
    assert float(p50) < float(p95)


def test_max_min_parts_meet_small_demands_first() -> None:
    assert max_min(10.0, [1.0, 20.0, 4.0]) == [1.0, 5.0, 4.0]
    assert max_min(25.0, [1.0, 20.0, 4.0]) == [1.0, 20.0, 4.0]
    rng = random.Random(0)
    demands = [rng.random() for _ in range(20)]
    parts = max_min(6.0, demands)
    assert sum(parts) == pytest.approx(6.0) and all(p <= d for p, d in zip(parts, demands, strict=True))
    largest = max(parts)
    assert all(
        part == pytest.approx(largest) or part == demand for part, demand in zip(parts, demands, strict=True)
    )


def test_jains_index() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert math.isnan(jain([0.0, 0.0]))


def test_work_left_falls_with_every_tick() -> None:
    sample = next(arrivals(OVERLOAD, 1, SECONDS, 0))
    assert work_left(sample) == pytest.approx(sum(sample.workload.work))
    sample.step_index += 3
    assert work_left(sample) == pytest.approx(sum(sample.workload.work[3:]))
