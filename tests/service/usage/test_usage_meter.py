"""The usage meter of a stage, and the delivery of its reports to the ledger."""

import threading

import pytest

from safelight.pipeline.params import StageCost, UsageAmounts
from safelight.service.messages import NO_CONTEXT, RequestContext, StageStatus
from safelight.service.stages import usage_meter
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.usage import reporter as reporter_module
from safelight.service.usage.events import GatewayReport, UsageEvent, UsageReport
from safelight.service.usage.reporter import Outbox, UsageReporter
from tests.clock import ManualClock
from tests.fakes import USAGE
from tests.service.usage.test_ledger import record


def test_busy_seconds_are_the_time_at_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    clock.install(monkeypatch, usage_meter)
    meter = UsageMeter("denoise")
    assert meter.totals.busy == 0.0
    clock.advance(100.0)
    with meter.busy():
        clock.advance(1.0)
        with meter.idle():
            clock.advance(30.0)
            assert meter.totals.busy == 1.0
        with meter.starting():
            clock.advance(4.0)
        clock.advance(0.5)
        assert (meter.totals.busy, meter.totals.starting) == (5.5, 4.0)
        clock.advance(0.25)
    clock.advance(100.0)
    assert (meter.totals.busy, meter.totals.starting) == (5.75, 4.0)
    with meter.busy():
        clock.advance(2.0)
    assert meter.totals.busy == 7.75


def test_a_report_takes_out_the_events_and_keeps_the_totals() -> None:
    meter = UsageMeter("denoise")
    meter.record_usage(RequestContext("a"), StageCost(1.0, 10, 0.5), USAGE.denoise)
    meter.record_usage(NO_CONTEXT, StageCost(2.0, 20))
    meter.set_open_work(open_seconds=0.25, work_left=4.0)
    first = meter.collect_report("s", 0, StageStatus())
    second = meter.collect_report("s", 1, StageStatus())
    assert first.events == (
        UsageEvent("a", UsageAmounts(1.0, 0.5, 10, nfe=5, rows=9, tokens=153)),
        UsageEvent("", UsageAmounts(2.0, 0.0, 20)),
    )
    assert second.events == () and second.number == 1
    assert second.totals.open == 0.25 and second.totals.work_left == 4.0
    meter.count_open_work_as_lost()
    assert meter.totals.lost == 0.25 and meter.totals.open == meter.totals.work_left == 0.0


def test_work_left_follows_the_jobs_in_the_stage() -> None:
    meter = UsageMeter("decode")
    meter.record_duration(2.0, jobs=4)
    with meter.count_jobs(3):
        assert meter.work_left == pytest.approx(1.5)
        meter.record_duration(1.0, jobs=1)
        assert meter.work_left == pytest.approx(3 * (0.5 + usage_meter.SMOOTHING * 0.5))
        meter.set_open_work(open_seconds=7.0, work_left=4.0)
        assert meter.work_left == pytest.approx(4.0 + 1.65)
    meter.set_open_work(open_seconds=0.0, work_left=0.0)
    assert meter.work_left == 0.0


def test_autoscaling_reads_the_work_left_and_the_rate_at_which_work_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock(now=50.0)
    clock.install(monkeypatch, usage_meter)
    meter = UsageMeter("denoise")
    assert meter.autoscaling_stats() == {"work_left": 0.0, "offered": 0.0, "seconds_a_job": 0.0}
    clock.advance(4.0)
    meter.record_usage(NO_CONTEXT, StageCost(1.0, 10))  # done,
    meter.set_open_work(open_seconds=2.0, work_left=5.0)  # begun and still to do: 8 s of work in 4 s
    meter.record_duration(1.0, jobs=2)
    assert meter.autoscaling_stats() == {"work_left": 5.0, "offered": 2.0, "seconds_a_job": 0.5}


def test_a_report_names_the_thread_that_does_the_work() -> None:
    meter = UsageMeter("encode")
    thread = threading.Thread(target=meter.begin)
    thread.start()
    thread.join()
    assert meter.collect_report("s", 0, StageStatus()).thread == thread.native_id


class FlakyLedger:
    """A ledger that refuses the first reports; `delivered` is set when one has arrived."""

    def __init__(self, refuse: int) -> None:
        self.refuse = refuse
        self.reports: list[GatewayReport] = []
        self.delivered = threading.Event()

    def send(self, report: UsageReport) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError
        assert isinstance(report, GatewayReport)
        self.reports.append(report)
        self.delivered.set()


def test_the_reporter_delivers_in_order_despite_failures() -> None:
    outbox, ledger = Outbox(), FlakyLedger(refuse=2)
    reporter = UsageReporter(outbox.collect, ledger.send, interval=60.0)
    outbox.put(record("a"))
    assert not reporter.deliver()
    outbox.put(record("b"))
    assert not reporter.deliver()
    assert not reporter.is_stuck  # nobody is delivering
    assert reporter.deliver() and reporter.deliver()
    delivered = [(report.number, [r.record_id for r in report.records]) for report in ledger.reports]
    assert delivered == [(0, ["a"]), (1, ["b"])]
    assert len({report.source for report in ledger.reports}) == 1


def test_the_reporter_delivers_in_the_background_and_once_more_when_stopped() -> None:
    outbox, ledger = Outbox(), FlakyLedger(refuse=0)
    reporter = UsageReporter(outbox.collect, ledger.send, interval=0.01)
    outbox.put(record("a"))
    reporter.start()
    assert ledger.delivered.wait(60.0)
    while not any(report.records for report in ledger.reports):  # the first may have been empty
        assert reporter.deliver()
    outbox.put(record("b"))
    reporter.stop()
    assert sum(len(report.records) for report in ledger.reports) == 2
    reporter.join(5)
    assert not reporter.is_alive()


def test_a_gateway_without_room_drops_the_oldest_records_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter_module, "RECORDS_KEPT", 3)
    monkeypatch.setattr(reporter_module, "RECORDS_SENT", 2)
    outbox = Outbox()
    for name in "abcde":
        outbox.put(record(name))
    reports = [outbox.collect("g", number) for number in range(3)]
    assert [[r.record_id for r in report.records] for report in reports] == [["c", "d"], ["e"], []]
    assert [report.dropped for report in reports] == [2, 0, 0]


def test_a_retry_is_reported_once_and_images_in_flight_every_time() -> None:
    outbox = Outbox()
    outbox.count_retry("m")
    outbox.count_retry("m")
    outbox.set_in_flight("m", 3)
    first, second = outbox.collect("g", 0), outbox.collect("g", 1)
    assert (first.retried, second.retried) == ((("m", 2),), ())
    assert first.in_flight == second.in_flight == (("m", 3),)
