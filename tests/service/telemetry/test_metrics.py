"""The metrics: everything in the tables is exposed, adds up over replicas, and says nothing of who asked what."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.service.messages import StageStatus
from safelight.service.telemetry.metrics import OF_REQUESTS, OF_STAGES, TICKS, Metrics
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import Histogram, TickHistograms
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.stage_snapshot import snapshot
from tests.fakes import USAGE

NAMES = {*OF_REQUESTS, *(metric.name for metric in OF_STAGES), *TICKS, "safelight_stage_unattributed_seconds"}


def statement(source: str, ticks: TickHistograms, *charges: UsageEvent, **totals: float) -> StageReport:
    status = StageStatus(images=3, running=2, rows=40)
    return StageReport(source, 0, "denoise", charges, StageTotals(**totals, ticks=ticks.counts), status, 1, 2)


@pytest.fixture
def metrics() -> Metrics:
    """A gateway's, after one request and with two denoisers."""
    told, ledger, ticks = Metrics(), Ledger(), TickHistograms()
    record = UsageRecord(
        "account", "theirs", RequestOutcome.DONE, "ok", "secret-key", "m", 1, (USAGE,), 2.0, 0.0
    )
    told.record(record)
    told.count_resent()
    told.set_in_flight(3)
    ticks.observe(0.003, 8, 512, 0.003)
    ticks.observe(0.03, 16, 1024, 0.02)
    ledger.post(GatewayReport("gateway", 0, (record,)))
    ledger.post(
        statement(
            "one",
            ticks,
            UsageEvent("account", 3.0, 9),
            UsageEvent("", 0.5, 1),
            busy=5.0,
            starting=1.0,
            work_left=4.0,
        )
    )
    ledger.post(statement("two", ticks, busy=1.0, work_left=2.0))
    told.observe_stages({"denoise": StageStatus(images=100, attention="products"), "encode": None})
    told.observe_measures(snapshot(ledger), mfu=0.5)
    return told


def samples(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.expose().decode())
    return {
        " ".join([s.name, *sorted(s.labels.values())]): s.value for family in families for s in family.samples
    }


def test_all_of_the_tables_is_exposed_and_nothing_else(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.expose().decode()))
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name: family for family in families
    }
    assert {
        name for name in told if not name.endswith("_created")
    } == NAMES  # the library's own, one for each counter
    assert all(family.documentation for family in families)
    for name, (kind, _, _) in OF_REQUESTS.items():
        assert told[name].type == kind


def test_replicas_add_up(metrics: Metrics) -> None:
    told = samples(metrics)
    assert told["safelight_stage_replicas denoise"] == 2 and told["safelight_stage_replicas encode"] == 0
    assert told["safelight_stage_images_finished denoise"] == 6  # not what one of them said when it was asked
    assert told["safelight_stage_work_left_seconds denoise"] == 6.0
    assert told["safelight_stage_busy_seconds_total denoise"] == 6.0
    assert told["safelight_stage_attributed_seconds_total denoise"] == 3.0
    name = "safelight_stage_unattributed_seconds"
    reasons = {
        reason: told[" ".join([name, *sorted(["denoise", reason])])]
        for reason in ("warm_up", "starting", "overhead")
    }
    assert reasons == {"warm_up": 0.5, "starting": 1.0, "overhead": 1.5}
    assert told["safelight_mfu_ratio"] == 0.5


def test_ticks_are_histograms_of_all_replicas(metrics: Metrics) -> None:
    told = samples(metrics)
    assert told["safelight_tick_duration_seconds_bucket 0.002"] == 0
    assert told["safelight_tick_duration_seconds_bucket 0.005"] == 2
    assert told["safelight_tick_duration_seconds_bucket +Inf"] == told["safelight_tick_duration_seconds_count"] == 4
    assert told["safelight_tick_duration_seconds_sum"] == pytest.approx(0.066)
    assert told["safelight_tick_rows_bucket 8.0"] == 2
    assert told["safelight_tick_forecast_ratio_bucket 1.0"] == 2


def test_nothing_says_who_asked_what(metrics: Metrics) -> None:
    text = metrics.expose().decode()
    assert not any(secret in text for secret in ("account", "theirs", "secret-key"))
    labels = {
        label
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels
    }
    assert labels <= {"outcome", "code", "stage", "reason", "backend", "le"}


def test_names_follow_the_customs(metrics: Metrics) -> None:
    for name in NAMES:
        assert re.fullmatch(r"safelight_[a-z_]+", name)
    for metric in OF_STAGES:
        assert metric.name.endswith("_total") == (metric.kind == "counter")


def test_a_single_replica_is_asked_itself() -> None:
    told, ledger = Metrics(), Ledger()
    ledger.post(statement("one", TickHistograms(), busy=1.0))
    told.observe_stages({"denoise": StageStatus(images=100)})
    told.observe_measures(snapshot(ledger), mfu=None)
    assert samples(told)["safelight_stage_images_finished denoise"] == 100


def test_counts_add_and_take_away() -> None:
    one, other = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        one.observe(value)
    other.observe(2.0)
    assert one.counts.counts == (2, 1, 1) and one.counts.total == 12.0
    assert (one.counts + other.counts).counts == (2, 2, 1)
    assert (one.counts + other.counts) - other.counts == one.counts


def test_the_documentation_lists_them_all() -> None:
    listed = set(
        re.findall(r"`(safelight_\w+)`", (Path(__file__).parents[3] / "docs" / "metrics.md").read_text())
    )
    assert listed == NAMES
