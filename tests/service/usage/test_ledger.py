"""The ledger accounts for every busy second, in whatever order reports arrive, also repeated or late."""

import random
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.pipeline.params import UsageAmounts
from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from safelight.service.usage import ledger as ledger_module
from safelight.service.usage.changes import Changes
from safelight.service.usage.client import LocalLedger
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent, UsageReport
from safelight.service.usage.histograms import TickHistograms
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.report import build_report, percentiles, stage_balances
from safelight.service.usage.report_schema import AccountingReport, StageBalance
from safelight.service.usage.stage_snapshot import snapshot
from tests.fakes import USAGE


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def record(
    record_id: str, outcome: RequestOutcome = RequestOutcome.DONE, images: int = 1, **changes: Any
) -> UsageRecord:
    is_done = outcome is RequestOutcome.DONE
    default = UsageRecord(
        record_id=record_id,
        request_id="theirs",
        outcome=outcome,
        code="ok" if is_done else "why",
        key="me",
        model="m",
        num_images=images,
        image_usages=(USAGE,) * images if is_done else (),
        seconds=2.0,
        ended=1000.0,
    )
    return replace(default, **changes)


def event(record_id: str, device_seconds: float, flops: int = 1, **amounts: Any) -> UsageEvent:
    return UsageEvent(record_id, UsageAmounts(device_seconds=device_seconds, flops=flops, **amounts))


def gateway_report(number: int, *records: UsageRecord, source: str = "gateway") -> GatewayReport:
    return GatewayReport(source, number, records)


def stage_report(
    number: int, *events: UsageEvent, stage: str = "denoise", source: str = "one", **totals: Any
) -> StageReport:
    status = StageStatus(images=3, peak_flops=1e3)
    return StageReport(source, number, stage, events, StageTotals(**totals), status, 77, 78)


def denoise_balance(ledger: Ledger) -> StageBalance:
    return build_report(ledger, Settings()).balance.stages["denoise"]


EVENT = event("a", 1.5, 1000, queue_seconds=0.25, nfe=4, rows=8, tokens=128)


@pytest.mark.parametrize(
    "reports",
    [
        (stage_report(0, EVENT, busy=2.0), gateway_report(0, record("a"))),
        (gateway_report(0, record("a")), stage_report(0, EVENT, busy=2.0)),
    ],
    ids=["event first", "record first"],
)
def test_a_request_and_its_usage_are_joined_whichever_arrives_first(
    reports: tuple[UsageReport, UsageReport],
) -> None:
    ledger = Ledger()
    ledger.receive(reports[0])
    assert ledger.pending_seconds(("denoise", "")) == (1.5 if isinstance(reports[0], StageReport) else 0.0)
    ledger.receive(reports[1])
    report = build_report(ledger, Settings(price_per_device_hour=3.6), latest=5)
    [account], [request] = report.accounts, report.latest
    assert (account.key, account.model, account.images) == ("me", "m", 1)
    assert asdict(account.stages["denoise"]) == asdict(request.stages["denoise"])
    assert asdict(account.stages["denoise"]) == {
        "device_seconds": 1.5, "queue_seconds": 0.25, "flops": 1000, "nfe": 4, "rows": 8, "tokens": 128,
    }  # fmt: skip
    assert ledger.pending_seconds(("denoise", "")) == 0.0
    assert report.mfu == pytest.approx(1000 / 1.5 / 1e3)
    assert report.images_per_busy_hour == pytest.approx(1800.0)
    assert report.cost_per_1000_images == pytest.approx(2.0)
    latency, rate = report.targets
    assert latency.met is True and latency.got == 2.0 and latency.by == pytest.approx(-0.6)
    assert rate.met is True and rate.by == pytest.approx(0.8)


def test_a_missed_target_says_by_how_much() -> None:
    ledger = Ledger()
    ledger.receive(gateway_report(0, record("a", seconds=10.0)))
    ledger.receive(stage_report(0, event("a", 7.2), busy=9.2, starting=2.0))
    latency, rate = build_report(ledger, Settings()).targets
    assert latency.met is False and latency.by == pytest.approx(1.0)
    assert rate.met is False and rate.got == pytest.approx(500.0)


def test_an_empty_ledger_has_a_report() -> None:
    report = build_report(Ledger(), Settings())
    assert report.images == 0 and report.mfu is None and report.balance.unattributed_share is None
    assert [target.met for target in report.targets] == [None, None]
    assert report.requests == {"done": 0, "refused": 0, "aborted": 0, "failed": 0}


def test_a_repeated_report_counts_once() -> None:
    ledger = Ledger()
    for report in (gateway_report(0, record("a")), stage_report(0, event("a", 1.0), busy=1.0)):
        ledger.receive(report)
        ledger.receive(report)
    ledger.receive(gateway_report(1, record("a")))  # the same request in another report
    accounting = build_report(ledger, Settings())
    assert accounting.requests["done"] == accounting.images == 1
    balance = accounting.balance.stages["denoise"]
    assert balance.busy == balance.requests == 1.0


def test_refused_and_aborted_requests_have_usage_too() -> None:
    ledger = Ledger()
    ledger.receive(
        gateway_report(0, record("gone", RequestOutcome.ABORTED), record("refused", RequestOutcome.REFUSED))
    )
    ledger.receive(stage_report(0, event("gone", 0.75, 5, nfe=3), busy=1.0))
    report = build_report(ledger, Settings(), latest=2)
    assert report.requests == {"done": 0, "refused": 1, "aborted": 1, "failed": 0}
    assert report.refusals == {"why": 2}
    assert report.images == 0 and report.nfe == 3
    assert [(request.outcome, request.stages["denoise"].device_seconds) for request in report.latest] == [
        ("refused", 0.0),
        ("aborted", 0.75),
    ]


def test_a_window_holds_only_what_happened_in_it() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.receive(gateway_report(0, record("old", seconds=9.0, ended=clock.time)))
    ledger.receive(stage_report(0, event("old", 1.0), busy=1.0))
    clock.time += 600.0
    ledger.receive(gateway_report(1, record("new", seconds=1.0, ended=clock.time)))
    ledger.receive(stage_report(1, event("new", 3.0), busy=4.0))
    total, recent = build_report(ledger, Settings()), build_report(ledger, Settings(), window=120.0)
    assert (total.images, recent.images) == (2, 1)
    assert (total.latency_seconds.p99, recent.latency_seconds.p99) == (9.0, 1.0)
    assert recent.device_seconds["denoise"] == 3.0
    assert total.images_per_hour == pytest.approx(2 * 3600 / 600)
    assert recent.window_seconds == pytest.approx(160.0)  # since the minute in which it was two minutes ago
    assert recent.images_per_hour == pytest.approx(3600 / 160)


@pytest.mark.parametrize("window", [1.0, 10.0, 60.0, 119.0, 600.0, 3599.0, 86_400.0, None])
def test_a_steady_rate_is_the_same_in_every_window(window: float | None) -> None:
    clock = Clock()
    ledger = Ledger(clock)
    for second in range(2 * 3600):
        clock.time += 1.0
        ledger.receive(gateway_report(second, record(str(second), ended=clock.time)))
        ledger.receive(stage_report(second, busy=float(second)))
    clock.time += 0.5
    report = build_report(ledger, Settings(), window=window)
    assert report.images_per_hour == pytest.approx(3600, rel=0.06)
    assert report.images_per_hour_per_device == pytest.approx(3600, rel=0.06)
    is_whole = report.window_seconds == clock.time - ledger.since
    assert (window or 0.0) <= report.window_seconds + 1e-6 or is_whole


def test_the_minutes_add_up_to_the_whole() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ticks = TickHistograms()
    for number in range(5):
        clock.time += 45.0
        ticks.observe(0.01, 2, 64, 0.02)
        ledger.receive(
            gateway_report(number, record(str(number), list(RequestOutcome)[number % 4], images=2))
        )
        ledger.receive(
            stage_report(
                number,
                event(str(number), 1.0, 7, queue_seconds=0.5, nfe=1, rows=2, tokens=3),
                event("", 0.25),
                busy=4.0 * number,
                starting=0.5 * number,
                lost=0.125 * number,
                ticks=ticks.data,
            )
        )
    denoise = ledger.totals.stages["denoise", ""]
    assert (denoise.alive, denoise.lost, denoise.warm_up, denoise.ticks.rows.counts[1]) == (180, 0.5, 1.25, 5)
    assert ledger.window_totals(3600.0) == ledger.totals
    assert ledger.window_totals(50.0) != ledger.totals


def test_images_per_hour_and_device_count_the_hours_that_devices_were_alive() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    clock.time += 60.0  # without a device
    ledger.receive(stage_report(0, source="one"))
    clock.time += 100.0
    ledger.receive(stage_report(1, source="one"))
    for source in ("two", "three"):
        ledger.receive(stage_report(0, source=source))
    ledger.receive(gateway_report(0, *(record(str(number)) for number in range(50))))
    assert build_report(ledger, Settings()).images_per_hour_per_device == pytest.approx(50 * 36)


def test_a_new_ledger_starts_with_the_usage_in_an_old_replicas_first_report() -> None:
    ledger = Ledger(Clock())
    ledger.receive(stage_report(500, event("a", 20.0), busy=1000.0, open=300.0))
    ledger.receive(stage_report(501, event("b", 310.0), busy=1011.0, open=0.5))
    balance = denoise_balance(ledger)
    assert balance.busy == pytest.approx(331.0)
    assert balance.in_progress == pytest.approx(330.5)
    assert balance.overhead == pytest.approx(0.5)


def test_a_new_ledger_does_not_count_an_old_replicas_past() -> None:
    ledger = Ledger()
    ledger.receive(stage_report(40, busy=500.0, starting=5.0))
    ledger.receive(stage_report(41, event("", 1.0), busy=501.5, starting=5.0))
    balance = denoise_balance(ledger)
    assert (balance.busy, balance.starting, balance.warm_up, balance.overhead) == (1.5, 0.0, 1.0, 0.5)


def test_replicas_dead_for_long_are_forgotten() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    for number in range(20):
        ledger.receive(stage_report(0, source=str(number), busy=1.0))
        clock.time += 600.0
        ledger.replicas("denoise")
    assert len(ledger.state.next_number) <= 8
    assert denoise_balance(ledger).busy == 20.0


def test_open_seconds_of_a_dead_replica_are_lost_unless_it_reports_again() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.receive(stage_report(0, busy=5.0, open=2.0))
    balance = denoise_balance(ledger)
    assert (balance.in_progress, balance.lost, balance.overhead) == (2.0, 0.0, 3.0)
    clock.time += ledger_module.SILENT_SECONDS + 1
    balance = denoise_balance(ledger)
    assert (balance.in_progress, balance.lost, balance.overhead) == (0.0, 2.0, 3.0)
    assert build_report(ledger, Settings()).devices == 0
    ledger.receive(stage_report(1, event("a", 2.0), busy=5.0))
    balance = denoise_balance(ledger)
    assert (balance.busy, balance.in_progress, balance.lost) == (5.0, 2.0, 0.0)


def test_usage_without_a_record_is_lost_after_an_hour() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.receive(stage_report(0, event("never", 2.0), busy=2.0))
    clock.time += ledger_module.ORPHAN_SECONDS + 1
    ledger.receive(stage_report(1, busy=2.0))
    balance = denoise_balance(ledger)
    assert (balance.in_progress, balance.lost) == (0.0, 2.0)


Events = dict[str, list[UsageEvent]]  # by replica


def make_events(rng: random.Random, num_requests: int, num_replicas: int) -> Events:
    """Random usage events; their seconds are multiples of 1/1024, which floats add up exactly."""

    def one() -> UsageEvent:
        return event(str(rng.randrange(num_requests)), rng.randrange(1, 100) / 1024, 7, rows=2)

    return {str(replica): [one() for _ in range(rng.randrange(6))] for replica in range(num_replicas)}


def make_queues(
    rng: random.Random, outcomes: dict[str, RequestOutcome], events: Events
) -> list[list[UsageReport]]:
    """The reports of a gateway and of each replica, in order; replicas are busy for twice their usage."""
    queues: list[list[UsageReport]] = [
        [gateway_report(k, record(n, outcome), source="g") for k, (n, outcome) in enumerate(outcomes.items())]
    ]
    for source, replica_events in events.items():
        stage, busy = rng.choice(["encode", "denoise", "decode"]), 0.0
        queue: list[UsageReport] = []
        for number, usage_event in enumerate(replica_events):
            busy += 2 * usage_event.amounts.device_seconds
            queue.append(stage_report(number, usage_event, stage=stage, source=source, busy=busy))
        queues.append(queue)
    return queues


def check_sums(report: AccountingReport, record_ids: list[str], events: list[UsageEvent]) -> None:
    assert sum(report.requests.values()) == len(record_ids) == len(report.latest)
    assert sum(report.device_seconds.values()) == sum(e.amounts.device_seconds for e in events)
    assert report.flops == 7 * len(events)
    assert sum(s.rows for request in report.latest for s in request.stages.values()) == 2 * len(events)
    for balance in report.balance.stages.values():
        assert balance.busy == balance.requests + balance.overhead
        assert balance.in_progress == balance.lost == balance.warm_up == 0.0
    by_request = [
        sum(e.amounts.device_seconds for e in events if e.record_id == record_id) for record_id in record_ids
    ]
    reported = [sum(s.device_seconds for s in request.stages.values()) for request in report.latest]
    assert sorted(by_request) == sorted(reported)


@given(st.randoms(use_true_random=False), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_every_second_is_accounted_for_in_any_order_of_reports(
    rng: random.Random, num_requests: int, num_replicas: int
) -> None:
    """Reports of several replicas and a gateway, interleaved and repeated."""
    outcomes = {str(n): rng.choice(list(RequestOutcome)) for n in range(num_requests)}
    events = make_events(rng, num_requests, num_replicas)
    queues = make_queues(rng, outcomes, events)
    ledger = Ledger()
    while any(queues):
        report = rng.choice([queue for queue in queues if queue]).pop(0)
        for _ in range(rng.choice([1, 1, 2])):
            ledger.receive(report)
    accounting = build_report(ledger, Settings(), latest=num_requests)
    check_sums(accounting, list(outcomes), [e for replica_events in events.values() for e in replica_events])


def test_percentiles_of_a_hundred() -> None:
    result = percentiles([float(n) for n in range(100, 0, -1)])
    assert (result.p50, result.p95, result.p99) == (50.0, 95.0, 99.0)


def test_the_ledger_keeps_a_bounded_number_of_minutes_and_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MINUTES_KEPT", 3)
    monkeypatch.setattr(ledger_module, "REQUESTS_KEPT", 5)
    clock = Clock()
    ledger = Ledger(clock)
    for number in range(10):
        ledger.receive(gateway_report(number, record(f"r{number}", ended=clock.time)))
        clock.time += 60.0
    assert len(ledger.state.minutes) == 3
    assert [entry.record.record_id for entry in ledger.latest_entries(10)] == ["r9", "r8", "r7", "r6", "r5"]
    assert sum(account.images for account in ledger.totals.accounts.values()) == 10
    assert sum(account.images for account in ledger.window_totals(1e9).accounts.values()) == 2


def two_models() -> Ledger:
    """A ledger of two models that share a decoder."""
    ledger = Ledger()
    ledger.receive(gateway_report(0, record("a", model="one"), record("b", model="two", images=2)))
    reports = {"one": (event("a", 3.0), 5.0), "two": (event("b", 4.0, flops=8000), 10.0)}
    for model, (usage, busy) in reports.items():
        ledger.receive(replace(stage_report(0, usage, source=model, busy=busy, starting=1.0), model=model))
    decoded = event("a", 0.5), event("b", 0.25)
    ledger.receive(stage_report(0, *decoded, stage="decode", source="decoder", busy=2.0))
    return ledger


def test_each_model_is_charged_its_denoiser_and_its_share_of_what_is_shared() -> None:
    report = build_report(two_models(), Settings(price_per_device_hour=3600.0))
    one, two = report.models
    assert (one.model, one.images, two.model, two.images) == ("one", 1, "two", 2)
    assert (one.stages["denoise"].device_seconds, one.stages["decode"].device_seconds) == (3.0, 0.5)
    assert one.device_seconds_per_image == 5.0 + 0.5 and two.device_seconds_per_image == (10.0 + 0.25) / 2
    assert two.images_per_busy_hour == pytest.approx(3600 * 2 / (10.25 - 1.0))
    assert two.cost_per_1000_images == pytest.approx(1000 * 10.25 / 2)
    assert (two.mfu, one.mfu) == (8000 / 4.0 / 1e3, 1 / 3.0 / 1e3)
    assert (one.devices, report.devices) == (1, 2)
    assert report.balance.stages["denoise"].busy == 15.0
    assert report.balance.stages["denoise"].requests == 7.0


def test_the_balance_of_each_denoiser_is_its_own() -> None:
    balances = stage_balances(two_models())
    assert balances["denoise", "one"].overhead == 5.0 - 3.0 - 1.0
    assert balances["denoise", "two"].overhead == 10.0 - 4.0 - 1.0
    assert balances["decode", ""].overhead == 2.0 - 0.75
    assert balances["encode", ""].busy == 0.0


def test_a_models_status_is_that_of_its_own_denoiser_and_of_what_it_shares() -> None:
    ledger = two_models()
    for source, images in (("one", 7), ("two", 9)):
        report = replace(stage_report(1, source=source), status=StageStatus(images=images), model=source)
        ledger.receive(report)
    for model, images in (("one", 7), ("two", 9)):
        status = ledger.status(model)
        assert status["denoise"] == StageStatus(images=images)
        assert status["decode"] is not None and status["encode"] is None
    assert ledger.status("three")["denoise"] is None


def test_work_is_attributed_by_the_model_of_the_request() -> None:
    stages = snapshot(two_models())
    assert stages["decode", ""].attributed == {"one": 0.5, "two": 0.25}
    assert stages["denoise", "two"].attributed == {"two": 4.0}
    assert stages["encode", ""].attributed == {"one": 0.0, "two": 0.0}


def test_images_in_flight_are_those_of_living_gateways() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    for source, images in (("one", 3), ("two", 4)):
        ledger.receive(replace(gateway_report(0, source=source), in_flight=(("m", images),)))
    assert (len(ledger.gateways()), ledger.in_flight()) == (2, {"m": 7})
    clock.time += ledger_module.SILENT_SECONDS
    ledger.receive(replace(gateway_report(1, source="two"), in_flight=(("m", 1),)))
    clock.time += 2.0
    assert (len(ledger.gateways()), ledger.in_flight()) == (1, {"m": 1})


def test_a_ledger_in_memory_keeps_no_list_of_changes() -> None:
    ledger = LocalLedger(Settings())
    for number in range(3):
        ledger.send(gateway_report(number, record(str(number))))
        ledger.send(stage_report(number, event(str(number), 1.0), busy=1.0 * number))
    assert ledger._ledger.changes == Changes()
