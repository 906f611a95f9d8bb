"""The ledger adds up: whatever comes, in whatever order, twice or late, every second is somebody's or has a name."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from safelight.service.usage import ledger as ledger_module
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.report import build_report, percentiles
from tests.fakes import USAGE


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def record(
    account: str, outcome: RequestOutcome = RequestOutcome.DONE, images: int = 1, **changed
) -> UsageRecord:
    usages = (USAGE,) * images if outcome is RequestOutcome.DONE else ()
    known = UsageRecord(
        account,
        "theirs",
        outcome,
        "ok" if outcome is RequestOutcome.DONE else "why",
        "me",
        "m",
        images,
        usages,
        2.0,
        1000.0,
    )
    return replace(known, **changed)


def of_gateway(number: int, *records: UsageRecord, source: str = "gateway") -> GatewayReport:
    return GatewayReport(source, number, records)


def of_stage(
    number: int, *charges: UsageEvent, stage: str = "denoise", source: str = "one", **totals: float
) -> StageReport:
    return StageReport(
        source, number, stage, charges, StageTotals(**totals), StageStatus(images=3, peak_flops=1e3), 77, 78
    )


def test_a_request_and_its_charges_meet_whichever_comes_first() -> None:
    early, late = Ledger(), Ledger()
    charge = UsageEvent("a", 1.5, 1000, 0.25, nfe=4, rows=8, tokens=128)
    early.post(of_stage(0, charge, busy=2.0))
    assert early.pending_seconds("denoise") == 1.5
    early.post(of_gateway(0, record("a")))
    late.post(of_gateway(0, record("a")))
    late.post(of_stage(0, charge, busy=2.0))
    for books in (early, late):
        told = build_report(books, Settings(price_per_device_hour=3.6), latest=5)
        [of_account], [request] = told.accounts, told.latest
        assert (of_account.key, of_account.model, of_account.images) == ("me", "m", 1)
        assert of_account.stages["denoise"].model_dump() == request.stages["denoise"].model_dump()
        assert of_account.stages["denoise"].model_dump() == {
            "device_seconds": 1.5, "queue_seconds": 0.25, "flops": 1000, "nfe": 4, "rows": 8, "tokens": 128,
        }  # fmt: skip
        assert books.pending_seconds("denoise") == 0.0
        assert told.mfu == pytest.approx(1000 / 1.5 / 1e3)
        assert told.images_per_busy_hour == pytest.approx(1800.0)
        assert told.cost_per_1000_images == pytest.approx(2.0)
        latency, rate = told.targets
        assert (latency.met, latency.got, latency.by) == (True, 2.0, pytest.approx(-0.6))
        assert (rate.met, rate.by) == (True, pytest.approx(0.8))


def test_a_missed_target_says_by_how_much() -> None:
    books = Ledger()
    books.post(of_gateway(0, record("a", seconds=10.0)))
    books.post(of_stage(0, UsageEvent("a", 7.2, 1), busy=9.2, starting=2.0))
    latency, rate = build_report(books, Settings()).targets
    assert (latency.met, latency.by) == (False, pytest.approx(1.0))
    assert (rate.met, rate.got) == (False, pytest.approx(500.0))


def test_nothing_has_happened() -> None:
    told = build_report(Ledger(), Settings())
    assert told.images == 0 and told.mfu is None and told.balance.unattributed_share is None
    assert [target.met for target in told.targets] == [None, None]
    assert told.requests == {"done": 0, "refused": 0, "aborted": 0, "failed": 0}


def test_what_is_posted_twice_counts_once() -> None:
    books = Ledger()
    for statement in (of_gateway(0, record("a")), of_stage(0, UsageEvent("a", 1.0, 1), busy=1.0)):
        books.post(statement)
        books.post(statement)
    books.post(of_gateway(1, record("a")))  # the same request from a gateway that forgot
    told = build_report(books, Settings())
    assert told.requests["done"] == told.images == 1
    assert told.balance.stages["denoise"].busy == told.balance.stages["denoise"].requests == 1.0


def test_refused_and_aborted_requests_are_charged_what_was_spent_on_them() -> None:
    books = Ledger()
    books.post(
        of_gateway(0, record("gone", RequestOutcome.ABORTED), record("refused", RequestOutcome.REFUSED))
    )
    books.post(of_stage(0, UsageEvent("gone", 0.75, 5, nfe=3), busy=1.0))
    told = build_report(books, Settings(), latest=2)
    assert told.requests == {"done": 0, "refused": 1, "aborted": 1, "failed": 0}
    assert told.refusals == {"why": 2}
    assert told.images == 0 and told.nfe == 3
    assert [(each.outcome, each.stages["denoise"].device_seconds) for each in told.latest] == [
        ("refused", 0.0),
        ("aborted", 0.75),
    ]


def test_a_window_holds_what_happened_in_it() -> None:
    clock = Clock()
    books = Ledger(clock)
    books.post(of_gateway(0, record("old", seconds=9.0, ended=clock.time)))
    books.post(of_stage(0, UsageEvent("old", 1.0, 1), busy=1.0))
    clock.time += 600.0
    books.post(of_gateway(1, record("new", seconds=1.0, ended=clock.time)))
    books.post(of_stage(1, UsageEvent("new", 3.0, 1), busy=4.0))
    whole, lately = build_report(books, Settings()), build_report(books, Settings(), window=120.0)
    assert (whole.images, lately.images) == (2, 1)
    assert (whole.latency_seconds.p99, lately.latency_seconds.p99) == (9.0, 1.0)
    assert lately.device_seconds["denoise"] == 3.0
    assert whole.images_per_hour == pytest.approx(2 * 3600 / 600)
    assert lately.window_seconds == pytest.approx(160.0)  # since the minute in which it was two minutes ago
    assert lately.images_per_hour == pytest.approx(3600 / 160)


@pytest.mark.parametrize("window", [1.0, 10.0, 60.0, 119.0, 600.0, 3599.0, 86_400.0, None])
def test_a_steady_rate_is_told_alike_of_every_window(window: float | None) -> None:
    clock = Clock()
    books = Ledger(clock)
    for second in range(2 * 3600):
        clock.time += 1.0
        books.post(of_gateway(second, record(str(second), ended=clock.time)))
        books.post(of_stage(second, busy=float(second)))
    clock.time += 0.5
    told = build_report(books, Settings(), window=window)
    assert told.images_per_hour == pytest.approx(3600, rel=0.06)
    assert told.images_per_hour_per_device == pytest.approx(3600, rel=0.06)
    assert (window or 0.0) <= told.window_seconds + 1e-6 or told.window_seconds == clock.time - books.since


def test_images_an_hour_of_a_device_are_for_the_time_that_devices_lived() -> None:
    clock = Clock()
    books = Ledger(clock)
    books.post(of_stage(0, source="one"))
    clock.time += 100.0
    books.post(of_stage(1, source="one"))
    for source in ("two", "three"):
        books.post(of_stage(0, source=source))
    books.post(of_gateway(0, *(record(str(number)) for number in range(50))))
    assert build_report(books, Settings()).images_per_hour_per_device == pytest.approx(50 * 36)


def test_a_ledger_that_was_replaced_counts_from_where_it_begins() -> None:
    clock = Clock()
    books = Ledger(clock)
    books.post(of_stage(500, UsageEvent("a", 20.0, 1), busy=1000.0, open=300.0))
    books.post(of_stage(501, UsageEvent("b", 310.0, 1), busy=1011.0, open=0.5))
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert balance.busy == pytest.approx(331.0)
    assert balance.in_progress == pytest.approx(330.5)
    assert balance.overhead == pytest.approx(0.5)


def test_whoever_is_long_gone_is_forgotten() -> None:
    clock = Clock()
    books = Ledger(clock)
    for number in range(20):
        books.post(of_stage(0, source=str(number), busy=1.0))
        clock.time += 600.0
        books.replicas("denoise")
    assert len(books._next_number) <= 8
    assert build_report(books, Settings()).balance.stages["denoise"].busy == 20.0


def test_what_dies_with_a_replica_is_lost_by_name_and_a_silent_one_is_not_dead() -> None:
    clock = Clock()
    books = Ledger(clock)
    books.post(of_stage(0, busy=5.0, open=2.0))
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert (balance.in_progress, balance.lost, balance.overhead) == (2.0, 0.0, 3.0)
    clock.time += ledger_module.SILENT_SECONDS + 1
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert (balance.in_progress, balance.lost, balance.overhead) == (0.0, 2.0, 3.0)
    assert build_report(books, Settings()).devices == 0
    books.post(of_stage(1, UsageEvent("a", 2.0, 1), busy=5.0))
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert (balance.busy, balance.in_progress, balance.lost) == (5.0, 2.0, 0.0)


def test_charges_of_a_gateway_that_died_are_lost_after_a_while() -> None:
    clock = Clock()
    books = Ledger(clock)
    books.post(of_stage(0, UsageEvent("never", 2.0, 1), busy=2.0))
    clock.time += ledger_module.UNCLAIMED_SECONDS + 1
    books.post(of_stage(1, busy=2.0))
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert (balance.in_progress, balance.lost) == (0.0, 2.0)


def test_a_new_ledger_does_not_take_an_old_replicas_past_for_its_own() -> None:
    books = Ledger()
    books.post(of_stage(40, busy=500.0, starting=5.0))
    books.post(of_stage(41, UsageEvent("", 1.0, 1), busy=501.5, starting=5.0))
    balance = build_report(books, Settings()).balance.stages["denoise"]
    assert (balance.busy, balance.starting, balance.warm_up, balance.overhead) == (1.5, 0.0, 1.0, 0.5)


@given(st.randoms(use_true_random=False), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_every_second_is_somebodys_whatever_the_order(
    rng: random.Random, num_requests: int, num_replicas: int
) -> None:
    """Statements of several replicas and gateways interleaved, repeated; charges in thousandths that floats hold exactly."""
    outcomes = {str(n): rng.choice(list(RequestOutcome)) for n in range(num_requests)}
    charged = {source: [UsageEvent(str(rng.randrange(num_requests)), rng.randrange(1, 100) / 1024, 7, rows=2) for _ in range(rng.randrange(6))]
               for source in map(str, range(num_replicas))}  # fmt: skip
    queues = [
        [of_gateway(k, record(n, outcome), source="g") for k, (n, outcome) in enumerate(outcomes.items())]
    ]
    for source, charges in charged.items():
        stage = rng.choice(["encode", "denoise", "decode"])
        spent = [sum(charge.device_seconds for charge in charges[: k + 1]) for k in range(len(charges))]
        queues.append(
            [
                of_stage(k, charge, stage=stage, source=source, busy=2 * spent[k])
                for k, charge in enumerate(charges)
            ]
        )
    books = Ledger()
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        statement = queue.pop(0)
        for _ in range(rng.choice([1, 1, 2])):
            books.post(statement)
    told = build_report(books, Settings(), latest=num_requests)
    every = [charge for charges in charged.values() for charge in charges]
    assert sum(told.requests.values()) == num_requests == len(told.latest)
    assert sum(told.device_seconds.values()) == sum(charge.device_seconds for charge in every)
    assert told.flops == 7 * len(every) and sum(
        each.stages[s].rows for each in told.latest for s in each.stages
    ) == 2 * len(every)
    for balance in told.balance.stages.values():
        assert balance.busy == balance.requests + balance.overhead  # by halves, as the replicas said
        assert balance.in_progress == balance.lost == balance.warm_up == 0.0
    by_request = {
        account: sum(c.device_seconds for c in every if c.record_id == account) for account in outcomes
    }
    assert sorted(by_request.values()) == sorted(
        sum(s.device_seconds for s in each.stages.values()) for each in told.latest
    )


def test_percentiles_of_a_hundred() -> None:
    told = percentiles([float(n) for n in range(100, 0, -1)])
    assert (told.p50, told.p95, told.p99) == (50.0, 95.0, 99.0)
