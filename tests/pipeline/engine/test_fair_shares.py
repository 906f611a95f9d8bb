"""Callers in the engine: who has how many rows in each tick, and what each is charged with."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from safelight.pipeline.engine import metering
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.params import FinishReason, Share
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import FairShares, Packets
from tests.pipeline.parts import drain, engine, params, states


def add_image(shared: Engine, name: str, share: Share, seed: int = 1, steps: int = 6) -> None:
    """Add an unguided image, which takes one row."""
    image = params(guidance_scale=1.0, solver="euler", num_steps=steps, seed=seed)
    shared.add(name, image, states(image.prompt), None, share=share)


@dataclass
class Charges:
    """What callers are charged with in the end, in device-seconds."""

    by_caller: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest: float = 0.0  # at once


@pytest.fixture
def charges(monkeypatch: pytest.MonkeyPatch) -> Charges:
    charges = Charges()
    measure, charge = FairShares.measure, FairShares.charge

    def count_measured(shares: FairShares, packets: Packets) -> None:
        for share, seconds in packets:
            charges.by_caller[share.caller] += seconds
            charges.largest = max(charges.largest, seconds)
        measure(shares, packets)

    def count_charged(shares: FairShares, share: Share, seconds: float) -> None:
        charges.by_caller[share.caller] += seconds
        charge(shares, share, seconds)

    monkeypatch.setattr(FairShares, "measure", count_measured)
    monkeypatch.setattr(FairShares, "charge", count_charged)
    return charges


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_caller_has_its_share_from_its_first_tick_on(
    charges: Charges, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Four rows fit a tick, and the other caller has eleven images here and three ticks' start."""
    monkeypatch.setattr(metering, "FairShares", partial(FairShares, credit_ticks=0.0))
    shared = engine(max_rows=4).calibrated(CostCurve((1e9,), (1.0,)))
    for number in range(11):
        add_image(shared, f"greedy {number}", Share("greedy"), number, steps=60)
    for _ in range(3):
        shared.step()
    for number in range(4):
        add_image(shared, f"polite {number}", Share("polite", weight), steps=60)
    before = dict(charges.by_caller)
    ticks: list[float] = []
    for _ in range(40):
        shared.step()
        assert shared.last_tick is not None
        ticks.append(shared.last_tick.seconds)
    polite = charges.by_caller["polite"] / weight
    greedy = charges.by_caller["greedy"] - before["greedy"]
    assert polite == pytest.approx(greedy, abs=2 * (charges.largest + max(ticks)) / weight)
    assert polite > 0.5 * greedy


def test_callers_are_charged_with_what_their_images_report(charges: Charges) -> None:
    """Setup, ticks, and images that leave early or cannot begin: all of their device-seconds."""
    shared = engine(max_rows=4)
    for number in range(5):
        add_image(shared, f"a {number}", Share("a"), number, steps=3 + number)
        add_image(shared, f"b {number}", Share("b", 3.0), number)
    usage: dict[str, float] = defaultdict(float)
    shared.abort("a 4")  # waits
    for outcome in shared.step():
        usage[outcome.request_id[0]] += outcome.usage.cost.device_seconds
    shared.abort("b 0")  # runs
    outcomes = drain(shared).values()
    for outcome in outcomes:
        usage[outcome.request_id[0]] += outcome.usage.cost.device_seconds
    assert [outcome.reason for outcome in outcomes].count(FinishReason.DONE) == 8
    assert charges.by_caller == pytest.approx(dict(usage))


def test_shares_do_not_change_images() -> None:
    """An image that is held back between its ticks has the latents that it has alone."""
    alone = engine()
    add_image(alone, "image", Share("a"))
    expected = drain(alone)["image"].latents
    shared = engine(max_rows=2)
    for number in range(6):
        add_image(shared, f"other {number}", Share(f"other {number}"), number + 2)
    add_image(shared, "image", Share("a"))
    latents = drain(shared)["image"].latents
    assert latents is not None and expected is not None
    assert torch.equal(latents, expected)


def test_an_idle_engine_treats_all_callers_alike() -> None:
    shared = engine()
    add_image(shared, "first", Share("a"))
    drain(shared)
    shares = shared._metering.shares
    assert shares.start_tag(Share("a")) == shares.start_tag(Share("b"))
