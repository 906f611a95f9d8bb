"""The usage meter of a stage, and the delivery of its reports to the ledger."""

import threading
import time

import pytest

from safelight.pipeline.params import StageCost, UsageAmounts
from safelight.service.messages import NO_CONTEXT, RequestContext, StageStatus
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.usage.events import GatewayReport, UsageEvent, UsageReport
from safelight.service.usage.reporter import Outbox, UsageReporter
from tests.fakes import USAGE
from tests.service.usage.test_ledger import record


def test_busy_seconds_are_the_time_at_work_only() -> None:
    meter = UsageMeter("denoise")
    assert meter.totals.busy == 0.0
    started = time.perf_counter()
    with meter.busy():
        time.sleep(0.02)
        with meter.idle():
            time.sleep(0.3)
        with meter.starting():
            time.sleep(0.02)
        inside = meter.totals
    elapsed = time.perf_counter() - started
    after = meter.totals
    assert 0.02 <= inside.starting <= inside.busy <= after.busy < elapsed - 0.3 + 0.01
    time.sleep(0.05)
    assert meter.totals == after


def test_a_report_takes_out_the_events_and_keeps_the_totals() -> None:
    meter = UsageMeter("denoise")
    meter.record_usage(RequestContext("a"), StageCost(1.0, 10, 0.5), USAGE.denoise)
    meter.record_usage(NO_CONTEXT, StageCost(2.0, 20))
    meter.set_open_work(open_seconds=0.25, work_left=4.0)
    first = meter.collect_report("s", 0, StageStatus())
    second = meter.collect_report("s", 1, StageStatus())
    assert first.events == (
        UsageEvent("a", UsageAmounts(1.0, 0.5, 10, nfe=4, rows=8, tokens=128)),
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
        assert 1.5 < meter.work_left < 3.0
    assert meter.work_left == 0.0


def test_a_report_names_the_thread_that_does_the_work() -> None:
    meter = UsageMeter("encode")
    thread = threading.Thread(target=meter.begin)
    thread.start()
    thread.join()
    assert meter.collect_report("s", 0, StageStatus()).thread == thread.native_id


class FlakyLedger:
    """A ledger of a gateway that refuses the first reports."""

    def __init__(self, refuse: int) -> None:
        self.refuse = refuse
        self.reports: list[GatewayReport] = []

    def send(self, report: UsageReport) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError
        assert isinstance(report, GatewayReport)
        self.reports.append(report)


def test_the_reporter_delivers_in_order_despite_failures() -> None:
    outbox, ledger = Outbox(), FlakyLedger(refuse=2)
    reporter = UsageReporter(outbox.collect, ledger.send, interval=60.0)
    assert reporter.deliver()  # nothing to deliver
    outbox.put(record("a"))
    assert not reporter.deliver()
    outbox.put(record("b"))
    assert not reporter.deliver()
    assert reporter.deliver() and reporter.deliver()
    delivered = [(report.number, [r.record_id for r in report.records]) for report in ledger.reports]
    assert delivered == [(0, ["a"]), (1, ["b"])]
    assert len({report.source for report in ledger.reports}) == 1


def test_the_reporter_delivers_in_the_background_and_once_more_when_stopped() -> None:
    outbox, ledger = Outbox(), FlakyLedger(refuse=0)
    reporter = UsageReporter(outbox.collect, ledger.send, interval=0.01)
    outbox.put(record("a"))
    reporter.start()
    for _ in range(500):
        if ledger.reports:
            break
        time.sleep(0.01)
    assert [r.record_id for r in ledger.reports[0].records] == ["a"]
    outbox.put(record("b"))
    reporter.stop()
    assert sum(len(report.records) for report in ledger.reports) == 2
    reporter.join(5)
    assert not reporter.is_alive()
