"""Samples in the background take what others leave: they delay nobody, and fill what is idle."""

from dataclasses import replace

import pytest

from safelight.pipeline.params import BACKGROUND, Share
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import FairShares
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import (
    MAX_BACKGROUND_STRETCH,
    background_work,
    charge_by_curve,
    max_running,
    select_next_batch,
)
from safelight.pipeline.scheduling.simulation import SimulatedSample
from safelight.pipeline.scheduling.workload import make_workload

LINEAR = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0), (0.010, 0.0196, 0.039, 0.0779, 0.1557))
FLAT = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0), (0.0100, 0.01001, 0.01002, 0.01003, 0.0101))
LIMITS = Limits(16, 10**6)
ALICE, BOB = Share("alice"), Share("bob")


def make_sample(share: Share, arrived: float = 0.0) -> SimulatedSample:
    workload = make_workload([2] * 10, [2.0] * 10, 64, LINEAR, arrived)
    return SimulatedSample(replace(workload, share=share))


def select(
    running: list[SimulatedSample],
    waiting: list[SimulatedSample],
    curve: CostCurve = LINEAR,
    shares: FairShares | None = None,
) -> list[SimulatedSample]:
    queue = WaitingQueue[SimulatedSample]()
    for sample in waiting:
        queue.add(sample)
    return select_next_batch(running, queue, 0.0, LIMITS, curve, shares or FairShares())


def shares_of(samples: list[SimulatedSample]) -> list[str]:
    return sorted(sample.workload.share.caller for sample in samples)


def test_nobody_is_delayed_where_more_rows_take_longer() -> None:
    background = [make_sample(BACKGROUND) for _ in range(8)]
    assert shares_of(select(background, [make_sample(ALICE)])) == ["alice"]
    assert shares_of(select([make_sample(ALICE)], background)) == ["alice"]


def test_room_that_costs_nothing_is_filled() -> None:
    selected = select([make_sample(ALICE)], [make_sample(BACKGROUND) for _ in range(20)], FLAT)
    assert shares_of(selected) == ["alice"] + ["background"] * 7
    alone, beside = FLAT.seconds_for(2.0), FLAT.seconds_for(2.0 * len(selected))
    assert beside <= MAX_BACKGROUND_STRETCH * alone


def test_background_alone_draws_at_nearly_full_speed_in_short_ticks() -> None:
    background = [make_sample(BACKGROUND) for _ in range(20)]
    work = sum(sample.workload.work[0] for sample in select([], background))
    assert work == max(2.0, background_work(LINEAR)) < 16.0
    best = max(w / s for w, s in zip(LINEAR.work, LINEAR.seconds, strict=True))
    assert work / LINEAR.seconds_for(work) >= 0.95 * best
    assert len(select([], background, FLAT)) == 8, "a tick whose size is free is full"


@pytest.mark.parametrize("curve", [LINEAR, FLAT], ids=["linear", "flat"])
def test_others_fill_a_tick_before_it(curve: CostCurve) -> None:
    waiting = [make_sample(BACKGROUND) for _ in range(8)] + [make_sample(BOB, 1.0) for _ in range(8)]
    assert shares_of(select([make_sample(ALICE)], waiting, curve)).count("background") == 0


def test_half_of_all_places_stay_free() -> None:
    running: list[SimulatedSample] = []
    waiting = [make_sample(BACKGROUND) for _ in range(100)]
    for _ in range(100):
        for sample in select(running, waiting, FLAT):
            if sample in waiting:
                waiting.remove(sample)
                running.append(sample)
        running, passed = running[-4:] + running[:-4], running
        assert len(passed) <= max_running(LIMITS) // 2
    newcomers = [make_sample(BOB) for _ in range(8)]
    assert shares_of(select(running, newcomers + waiting)) == ["bob"] * 8


def test_background_changes_no_shares() -> None:
    shares, background = FairShares(), [make_sample(BACKGROUND) for _ in range(4)]
    queue = WaitingQueue[SimulatedSample]()
    charge_by_curve(shares, background, background, queue, LINEAR)
    shares.charge(BACKGROUND, 5.0)
    tags = shares._tags
    assert (tags.virtual_time, tags.finish, tags.waiting) == (0.0, {}, frozenset())
    assert shares.start_tag(ALICE) == shares.start_tag(BOB)
