"""A stage's own books, and how they reach the ledger."""

import threading
import time

import pytest

from safelight.pipeline.params import StageCost
from safelight.service.messages import NO_CONTEXT, RequestContext, StageStatus
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.usage.events import UsageReport
from safelight.service.usage.reporter import Outbox, UsageReporter
from tests.fakes import USAGE
from tests.service.usage.test_ledger import record


def test_busy_is_the_time_at_work_and_nothing_else() -> None:
    books = UsageMeter("denoise")
    assert books.totals.busy == 0.0
    started = time.perf_counter()
    with books.working():
        time.sleep(0.02)
        with books.resting():
            time.sleep(0.3)
        with books.starting():
            time.sleep(0.02)
        inside = books.totals
    elapsed = time.perf_counter() - started
    after = books.totals
    assert 0.02 <= inside.starting <= inside.busy <= after.busy < elapsed - 0.3 + 0.01
    time.sleep(0.05)
    assert books.totals == after


def test_a_statement_takes_the_charges_out_and_leaves_the_totals() -> None:
    books = UsageMeter("denoise")
    books.charge(RequestContext("a"), StageCost(1.0, 10, 0.5), USAGE.denoise)
    books.charge(NO_CONTEXT, StageCost(2.0, 20))
    books.tell(open=0.25, work_left=4.0)
    first, second = books.state("s", 0, StageStatus()), books.state("s", 1, StageStatus())
    one, other = first.charges
    assert (one.record_id, one.device_seconds, one.flops, one.queue_seconds, one.nfe, one.rows) == (
        "a",
        1.0,
        10,
        0.5,
        4,
        8,
    )
    assert (other.record_id, other.nfe) == ("", 0)
    assert second.charges == () and second.number == 1
    assert second.totals.open == 0.25 and second.totals.work_left == 4.0
    books.lose()
    assert books.totals.lost == 0.25 and books.totals.open == books.totals.work_left == 0.0


def test_work_left_follows_the_jobs_that_are_here() -> None:
    books = UsageMeter("decode")
    books.took(2.0, jobs=4)
    with books.jobs(3):
        assert books.work_left == pytest.approx(1.5)
        books.took(1.0, jobs=1)
        assert 1.5 < books.work_left < 3.0
    assert books.work_left == 0.0


def test_the_thread_can_be_watched_from_outside() -> None:
    books = UsageMeter("encode")
    thread = threading.Thread(target=books.begin)
    thread.start()
    thread.join()
    assert books.state("s", 0, StageStatus()).thread == thread.native_id


class Counter:
    """A ledger that refuses the first posts."""

    def __init__(self, refuse: int):
        self.refuse = refuse
        self.seen: list[UsageReport] = []

    def post(self, statement: UsageReport) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError
        self.seen.append(statement)


def test_the_courier_delivers_in_order_whatever_fails() -> None:
    outbox, ledger = Outbox(), Counter(refuse=2)
    reporter = UsageReporter(outbox.take, ledger.post, every=60.0)
    assert reporter.deliver()  # there is nothing
    outbox.put(record("a"))
    assert not reporter.deliver()
    outbox.put(record("b"))
    assert not reporter.deliver()
    assert reporter.deliver() and reporter.deliver()
    assert [(s.number, [r.record_id for r in s.records]) for s in ledger.seen] == [(0, ["a"]), (1, ["b"])]
    assert len({s.source for s in ledger.seen}) == 1


def test_the_courier_goes_by_itself_and_brings_the_rest_when_it_is_stopped() -> None:
    outbox, ledger = Outbox(), Counter(refuse=0)
    reporter = UsageReporter(outbox.take, ledger.post, every=0.01)
    outbox.put(record("a"))
    reporter.start()
    for _ in range(500):
        if ledger.seen:
            break
        time.sleep(0.01)
    assert [r.record_id for r in ledger.seen[0].records] == ["a"]
    outbox.put(record("b"))
    reporter.stop()
    assert sum(len(s.records) for s in ledger.seen) == 2
    reporter.join(5)
    assert not reporter.is_alive()
