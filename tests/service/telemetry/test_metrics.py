"""The metrics: all tables are exposed, values add up over replicas, and no label identifies a caller."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.pipeline.params import UsageAmounts
from safelight.service.messages import StageStatus
from safelight.service.telemetry.metric_tables import (
    ATTRIBUTED_METRIC,
    GATEWAY_METRICS,
    LEDGER_METRICS,
    REQUEST_HISTOGRAMS,
    REQUEST_METRICS,
    STAGE_METRICS,
    TICK_METRICS,
    UNATTRIBUTED_METRIC,
)
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.events import StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import Histogram, TickHistograms
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.service_snapshot import service_snapshot
from safelight.service.usage.stage_snapshot import SUMMED_FIELDS, snapshot
from tests.fakes import USAGE

OTHER_METRICS = (*LEDGER_METRICS, *REQUEST_METRICS, ATTRIBUTED_METRIC, UNATTRIBUTED_METRIC)
HISTOGRAMS = (*REQUEST_HISTOGRAMS, *TICK_METRICS)
NAMES = {metric.name for metric in (*GATEWAY_METRICS, *STAGE_METRICS, *HISTOGRAMS, *OTHER_METRICS)}


def stage_report(source: str, ticks: TickHistograms, *events: UsageEvent, **totals: float) -> StageReport:
    status, all_totals = StageStatus(images=3, running=2, rows=40), StageTotals(**totals, ticks=ticks.data)
    return StageReport(source, 0, "denoise", events, all_totals, status, 1, 2, "m")


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of a gateway after one request, with two denoisers."""
    metrics, ledger, ticks = Metrics(), Ledger(), TickHistograms()
    record = UsageRecord(
        "record-7", "theirs", RequestOutcome.DONE, "ok", "secret-key", "m", 1, (USAGE,), 2.0, 0.0
    )
    metrics.outbox.put(record)
    metrics.count_retry("m")
    metrics.set_in_flight("m", 3)
    ticks.observe(0.003, 8, 512, 0.003)
    ticks.observe(0.03, 16, 1024, 0.02)
    ledger.receive(metrics.outbox.collect("gateway", 0))
    ledger.receive(
        stage_report(
            "one",
            ticks,
            UsageEvent("record-7", UsageAmounts(device_seconds=3.0, flops=9)),
            UsageEvent("", UsageAmounts(device_seconds=0.5, flops=1)),
            busy=5.0,
            starting=1.0,
            work_left=4.0,
        )
    )
    ledger.receive(stage_report("two", ticks, busy=1.0, work_left=2.0))
    metrics.observe_status("m", {"denoise": StageStatus(images=100, attention="products"), "encode": None})
    metrics.observe_snapshot(replace(service_snapshot(ledger), mfu={"m": 0.5}))
    metrics.observe_batches({"in_progress": 1}, {"queued": 2})
    return metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and its labels; of one model, which is left out."""
    families = text_string_to_metric_families(metrics.expose().decode())
    return {
        " ".join([s.name, *sorted(value for label, value in s.labels.items() if label != "model")]): s.value
        for family in families
        for s in family.samples
    }


def test_exactly_the_tables_are_exposed(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.expose().decode()))
    by_name = {
        f"{family.name}_total" if family.type == "counter" else family.name: family for family in families
    }
    assert by_name.keys() == NAMES
    assert all(family.documentation for family in families)
    for metric in (*GATEWAY_METRICS, *STAGE_METRICS, *OTHER_METRICS):
        assert by_name[metric.name].type == metric.kind
    for histogram in HISTOGRAMS:
        assert by_name[histogram.name].type == "histogram"


def test_replicas_add_up(metrics: Metrics) -> None:
    values = samples(metrics)
    assert values["safelight_stage_replicas denoise"] == 2 and values["safelight_stage_replicas encode"] == 0
    assert values["safelight_stage_images_finished denoise"] == 6  # not the status of one of them
    assert values["safelight_stage_work_left_seconds denoise"] == 6.0
    assert values["safelight_stage_busy_seconds_total denoise"] == 6.0
    assert values["safelight_stage_attributed_seconds_total denoise"] == 3.0
    name = "safelight_stage_unattributed_seconds"
    reasons = {
        reason: values[" ".join([name, *sorted(["denoise", reason])])]
        for reason in ("warm_up", "starting", "overhead")
    }
    assert reasons == {"warm_up": 0.5, "starting": 1.0, "overhead": 1.5}
    assert values["safelight_mfu_ratio"] == 0.5


def test_the_counts_of_replicas_are_added_and_the_other_facts_are_the_firsts() -> None:
    ledger = Ledger()
    for number, attention in enumerate(("products", "fused"), 1):
        counts = {name: number * 10**place for place, name in enumerate(SUMMED_FIELDS)}
        status = StageStatus(**counts, attention=attention, peak_flops=float(number))
        ledger.receive(StageReport(attention, 0, "denoise", (), StageTotals(), status, 1, 2))
    combined = snapshot(ledger)["denoise", ""].status
    assert {name: getattr(combined, name) for name in SUMMED_FIELDS} == {
        name: 3 * 10**place for place, name in enumerate(SUMMED_FIELDS)
    }
    assert (combined.attention, combined.peak_flops) == ("products", 1.0)
    numbers = {field.name for field in fields(StageStatus) if field.type == "int"}
    assert {*SUMMED_FIELDS} == numbers


def test_only_the_present_back_end_is_shown(metrics: Metrics) -> None:
    assert samples(metrics)["safelight_attention_info products"] == 1
    metrics.observe_status("m", {"denoise": StageStatus(attention="fused")})
    values = samples(metrics)
    assert values["safelight_attention_info fused"] == 1
    assert "safelight_attention_info products" not in values


def test_ticks_are_histograms_of_all_replicas(metrics: Metrics) -> None:
    values = samples(metrics)
    assert values["safelight_tick_duration_seconds_bucket 0.002"] == 0
    assert values["safelight_tick_duration_seconds_bucket 0.005"] == 2
    assert values["safelight_tick_duration_seconds_bucket +Inf"] == 4
    assert values["safelight_tick_duration_seconds_count"] == 4
    assert values["safelight_tick_duration_seconds_sum"] == pytest.approx(0.066)
    assert values["safelight_tick_rows_bucket 8.0"] == 2
    assert values["safelight_tick_forecast_ratio_bucket 1.0"] == 2


def test_no_label_identifies_a_caller(metrics: Metrics) -> None:
    text = metrics.expose().decode()
    assert not any(secret in text for secret in ("record-7", "theirs", "secret-key"))
    labels = {
        label
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels
    }
    assert labels <= {"outcome", "code", "stage", "reason", "backend", "le", "model", "status", "state"}


def test_names_follow_the_conventions() -> None:
    for name in NAMES:
        assert re.fullmatch(r"safelight_[a-z_]+", name)
    for metric in (*GATEWAY_METRICS, *STAGE_METRICS, *OTHER_METRICS):
        assert metric.name.endswith("_total") == (metric.kind == "counter")


def test_the_status_of_a_single_replica_is_its_own_answer() -> None:
    metrics, ledger = Metrics(), Ledger()
    ledger.receive(stage_report("one", TickHistograms(), busy=1.0))
    metrics.observe_status("m", {"denoise": StageStatus(images=100)})
    metrics.observe_snapshot(service_snapshot(ledger))
    assert samples(metrics)["safelight_stage_images_finished denoise"] == 100


def test_histograms_add_and_subtract() -> None:
    first, second = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        first.observe(value)
    second.observe(2.0)
    assert first.data.counts == (2, 1, 1) and first.data.total == 12.0
    assert (first.data + second.data).counts == (2, 2, 1)
    assert (first.data + second.data) - second.data == first.data


def test_the_documentation_lists_all_metrics() -> None:
    listed = set(
        re.findall(r"`(safelight_\w+)`", (Path(__file__).parents[3] / "docs" / "metrics.md").read_text())
    )
    assert listed == NAMES
