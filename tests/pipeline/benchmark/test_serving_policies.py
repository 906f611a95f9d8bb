"""Policies under deadlines: each finishes what it lets in, within a tick's limits."""

import pytest

from safelight.pipeline.benchmark import serving_policies
from safelight.pipeline.benchmark.policies import CURVE, LIMITS
from safelight.pipeline.benchmark.serving_policies import POLICIES, TRAFFIC, arrivals, jain, rows, run, split
from safelight.pipeline.scheduling.simulation import Queue, Samples, SimulatedSample, simulate


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_policies, "SECONDS", 12.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_that_is_let_in_is_drawn(policy: str) -> None:
    make_rule, admits = POLICIES[policy]
    rule, offered = make_rule(), arrivals(TRAFFIC[-1], devices=1, seed=3)

    def checked(running: Samples, queue: Queue, now: float) -> list[SimulatedSample]:
        selected = rule(running, queue, now)
        assert 1 <= len(set(map(id, selected))) == len(selected)
        assert sum(sample.workload.rows[0] for sample in selected) <= LIMITS.max_rows
        return selected

    done = simulate(offered, checked, CURVE, admits=admits)
    assert all(sample.step_index == sample.workload.num_ticks for sample in done)
    assert len(done) == len(offered) if admits is None else 0 < len(done) < len(offered)


def test_under_overload_what_is_late_gives_way() -> None:
    overload = TRAFFIC[-1]
    first_come = run("first come, first served", overload, 1)
    assert run("after TetriServe", overload, 1).attainment > 2 * first_come.attainment
    assert run("after GENSERVE", overload, 1).attainment > first_come.attainment


def test_below_capacity_all_policies_keep_all_deadlines() -> None:
    for row in rows(fleets=(1,), shapes=TRAFFIC[:1]):
        assert row[:2] == ["1", "below capacity"] and row[2] in POLICIES
        assert row[4:7] == ["100%", "1.00", "0%"]


def test_requests_are_spread_over_the_devices() -> None:
    offered = arrivals(TRAFFIC[0], devices=8, seed=0)
    sizes = [len(part) for part in split(offered, 8, seed=1)]
    assert sum(sizes) == len(offered) and min(sizes) > 0.6 * max(sizes)


def test_jains_index() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
