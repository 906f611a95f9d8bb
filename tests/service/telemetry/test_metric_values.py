"""The value of every metric after known requests and reports; all numbers that are put in differ."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.pipeline.params import StageCost, UsageAmounts
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.messages import ImageUsage, StageStatus
from safelight.service.settings import Settings
from safelight.service.telemetry.metric_tables import (
    GATEWAY_METRICS,
    LEDGER_METRICS,
    REQUEST_HISTOGRAMS,
    REQUEST_METRICS,
    STAGE_METRICS,
    TICK_METRICS,
)
from safelight.service.telemetry.metrics import Metrics
from safelight.service.usage.events import GatewayReport, StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import (
    REQUEST_SECONDS,
    TICK_FORECAST,
    TICK_ROWS,
    TICK_SECONDS,
    TICK_TOKENS,
    TickHistograms,
)
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome, StoreUsage, UsageRecord
from safelight.service.usage.report import build_report
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.service_snapshot import ServiceSnapshot, service_snapshot
from safelight.service.usage.stage_snapshot import snapshot
from tests.fakes import USAGE

OTHER = replace(USAGE, encode=StageCost(0.0, 0, 4.0))  # the second image of a request pays for no text
RECORDS = (
    UsageRecord(
        "a",
        "theirs",
        RequestOutcome.DONE,
        "ok",
        "me",
        "m",
        2,
        (USAGE, OTHER),
        0.2,
        0.0,
        StoreUsage(0.5, 300),
        promised_seconds=0.25,
    ),
    UsageRecord(
        "b", "theirs", RequestOutcome.DONE, "ok", "me", "m", 1, (USAGE,), 40.0, 0.0, promised_seconds=30.0
    ),
    UsageRecord("c", "theirs", RequestOutcome.REFUSED, "queue_full", "me", "m", 7, (), 0.05, 0.0),
    UsageRecord(
        "d", "theirs", RequestOutcome.FAILED, "stage_lost", "me", "m", 8, (), 400.0, 0.0, StoreUsage(1.75, 4)
    ),
)
IMAGES = {"a": (USAGE, OTHER), "b": (USAGE,)}


def amounts(usage: ImageUsage, stage: str) -> UsageAmounts:
    """What a stage reports for one image."""
    cost = usage.stages[stage]
    counts = (usage.denoise.nfe, usage.denoise.rows, usage.denoise.tokens) if stage == "denoise" else ()
    return UsageAmounts(cost.device_seconds, cost.queue_seconds, cost.flops, *counts)


def events(stage: str) -> tuple[UsageEvent, ...]:
    """A stage's usage events: of every image sent, and of the warm-up image."""
    sent = [UsageEvent(key, amounts(usage, stage)) for key, usages in IMAGES.items() for usage in usages]
    return (*sent, UsageEvent("", UsageAmounts(device_seconds=0.5, flops=7)))


def two_ticks() -> TickHistograms:
    ticks = TickHistograms()
    ticks.observe(seconds=0.003, rows=8, tokens=512, expected_seconds=0.004)
    ticks.observe(seconds=0.03, rows=16, tokens=5000, expected_seconds=0.02)
    return ticks


CURVE = CostCurve((1e9,), (0.01,), slowdown=1.25)
STATUS = {
    "encode": StageStatus(images=21, cache_hits=22, cache_misses=23),
    "denoise": StageStatus(
        images=31,
        running=32,
        waiting=33,
        ticks=34,
        rows=35,
        attention="products",
        peak_flops=1e4,
        curve=CURVE,
    ),
    "decode": StageStatus(images=41, previews=42),
}
TOTALS = {
    "encode": StageTotals(busy=3.0, starting=1.25, work_left=5.5),
    "denoise": StageTotals(
        busy=12.0, starting=2.0, lost=0.75, open=1.5, work_left=6.5, ticks=two_ticks().data
    ),
    "decode": StageTotals(busy=2.5, starting=0.25, work_left=7.5),
}


def report(stage: str, source: str, *stage_events: UsageEvent) -> StageReport:
    model = "m" if stage == "denoise" else ""
    return StageReport(source, 0, stage, stage_events, TOTALS[stage], STATUS[stage], 1, 2, model)


@pytest.fixture
def accounting() -> tuple[Metrics, AccountingReport]:
    """A gateway's metrics after the requests, with one replica of each stage, and the accounting report."""
    metrics, ledger = Metrics(), Ledger()
    for record in RECORDS:
        metrics.outbox.put(record)
    metrics.count_retry("m")
    metrics.set_in_flight("m", 3)
    ledger.receive(metrics.outbox.collect("gateway", 0))
    ledger.receive(GatewayReport("another", 0, (), in_flight=(("m", 4),), dropped=2))
    for stage in STATUS:
        ledger.receive(report(stage, stage, *events(stage)))
    accounting_report = build_report(ledger, Settings())
    metrics.observe_batches({"cancelling": 1}, {"queued": 31})
    metrics.observe_batches({"validating": 0, "in_progress": 2}, {"queued": 30, "running": 5})
    metrics.observe_status("m", {**STATUS, "decode": None})
    metrics.observe_snapshot(replace(service_snapshot(ledger), unsaved_seconds=1.5))
    return metrics, accounting_report


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and its labels' values in the order of the labels, `le` last."""
    families = text_string_to_metric_families(metrics.expose().decode())
    return {
        " ".join((sample.name, *_values(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def histogram(name: str, bounds: tuple[float, ...], *values: float) -> dict[str, float]:
    """The samples of a histogram of `values`; a label may follow the name."""
    metric, *labels = name.split()
    buckets = {
        " ".join((f"{metric}_bucket", *labels, str(bound))): float(sum(value <= bound for value in values))
        for bound in bounds
    }
    ends = {("bucket", "+Inf"): len(values), ("count",): len(values), ("sum",): sum(values)}
    return buckets | {
        " ".join((f"{metric}_{kind}", *labels, *rest)): float(value) for (kind, *rest), value in ends.items()
    }


def expected_of_requests() -> dict[str, float]:
    return {
        "safelight_requests_total ok done": 2,
        "safelight_requests_total queue_full refused": 1,
        "safelight_requests_total stage_lost failed": 1,
        **histogram("safelight_request_duration_seconds done", REQUEST_SECONDS, 0.2, 40.0),
        **histogram("safelight_request_duration_seconds refused", REQUEST_SECONDS, 0.05),
        **histogram("safelight_request_duration_seconds failed", REQUEST_SECONDS, 400.0),
        "safelight_images_total": 3,
        "safelight_images_in_flight": 7,
        "safelight_gateway_replicas": 2,
        "safelight_ledger_up": 1,
        "safelight_ledger_unsaved_seconds": 1.5,
        "safelight_ledger_dropped_records_total": 2,
        "safelight_batches validating": 0,
        "safelight_batches in_progress": 2,
        "safelight_batch_lines queued": 30,
        "safelight_batch_lines running": 5,
        "safelight_images_retried_total": 1,
        "safelight_promised_requests_total": 2,
        "safelight_kept_promises_total": 1,
        **histogram("safelight_image_queue_seconds", REQUEST_SECONDS, 0.6875, 4.1875, 0.6875),
        "safelight_image_nfe_total": 15,
        "safelight_image_rows_total": 27,
        "safelight_image_tokens_total": 459,
        "safelight_image_flops_total encode": 200,
        "safelight_image_flops_total denoise": 6000,
        "safelight_image_flops_total decode": 90,
        "safelight_image_device_seconds_total encode": 0.5,
        "safelight_image_device_seconds_total denoise": 5.25,
        "safelight_image_device_seconds_total decode": 1.125,
        "safelight_image_store_seconds_total": 2.25,
        "safelight_image_store_bytes_total": 304,
    }


def by_stage(name: str, encode: float, denoise: float, decode: float) -> dict[str, float]:
    return {f"{name} encode": encode, f"{name} denoise": denoise, f"{name} decode": decode}


def unattributed(
    stage: str, warm_up: float, starting: float, lost: float, overhead: float
) -> dict[str, float]:
    seconds = {"warm_up": warm_up, "starting": starting, "lost": lost, "overhead": overhead}
    name = "safelight_stage_unattributed_seconds"
    return {f"{name} {reason} {stage}": value for reason, value in seconds.items()}


def expected_of_stages() -> dict[str, float]:
    return {
        **by_stage("safelight_stage_up", 1, 1, 0),
        "safelight_attention_info products": 1,
        "safelight_tick_slowdown_ratio": 1.25,
        "safelight_mfu_ratio": 6000 / 5.25 / 1e4,
        **by_stage("safelight_stage_replicas", 1, 1, 1),
        **by_stage("safelight_stage_work_left_seconds", 5.5, 6.5, 7.5),
        **by_stage("safelight_stage_images_running", 0, 32, 0),
        **by_stage("safelight_stage_images_waiting", 0, 33, 0),
        **by_stage("safelight_stage_images_finished", 21, 31, 41),
        **by_stage("safelight_stage_previews", 0, 0, 42),
        **by_stage("safelight_stage_ticks", 0, 34, 0),
        **by_stage("safelight_stage_rows", 0, 35, 0),
        **by_stage("safelight_stage_cache_hits", 22, 0, 0),
        **by_stage("safelight_stage_cache_misses", 23, 0, 0),
        **by_stage("safelight_stage_busy_seconds_total", 3.0, 12.0, 2.5),
        **by_stage("safelight_stage_attributed_seconds_total", 0.5, 5.25, 1.125),
        **unattributed("encode", warm_up=0.5, starting=1.25, lost=0.0, overhead=0.75),
        **unattributed("denoise", warm_up=0.5, starting=2.0, lost=0.75, overhead=2.0),
        **unattributed("decode", warm_up=0.5, starting=0.25, lost=0.0, overhead=0.625),
        **histogram("safelight_tick_duration_seconds", TICK_SECONDS, 0.003, 0.03),
        **histogram("safelight_tick_rows", TICK_ROWS, 8, 16),
        **histogram("safelight_tick_tokens", TICK_TOKENS, 512, 5000),
        **histogram("safelight_tick_forecast_ratio", TICK_FORECAST, 0.75, 1.5),
    }


def test_every_metric_has_its_value(accounting: tuple[Metrics, AccountingReport]) -> None:
    values = samples(accounting[0])
    expected = expected_of_requests() | expected_of_stages()
    assert values.keys() == expected.keys()
    wrong = {name: value for name, value in values.items() if value != pytest.approx(expected[name])}
    assert wrong == {}


def test_every_series_has_its_model_and_a_stage_that_models_share_has_none(
    accounting: tuple[Metrics, AccountingReport],
) -> None:
    of_stages = {metric.name for metric in STAGE_METRICS} | {"safelight_stage_unattributed_seconds"}
    of_all = ("safelight_ledger_", "safelight_gateway_", "safelight_batch")
    for family in text_string_to_metric_families(accounting[0].expose().decode()):
        for sample in family.samples:
            is_shared = sample.name in of_stages and sample.labels["stage"] != "denoise"
            if not sample.name.startswith(of_all):
                assert sample.labels["model"] == ("" if is_shared else "m"), sample


def test_no_metric_is_left_out_above() -> None:
    tables = GATEWAY_METRICS, LEDGER_METRICS, REQUEST_METRICS, REQUEST_HISTOGRAMS, STAGE_METRICS, TICK_METRICS
    names = {metric.name for table in tables for metric in table}
    asserted = {name.split()[0] for name in expected_of_requests() | expected_of_stages()}
    assert {name for name in names if not any(sample.startswith(name) for sample in asserted)} == set()


def test_the_accounting_report_has_the_same_sums(accounting: tuple[Metrics, AccountingReport]) -> None:
    values, accounting_report = samples(accounting[0]), accounting[1]
    assert accounting_report.images == values["safelight_images_total"]
    assert accounting_report.nfe == values["safelight_image_nfe_total"]
    assert accounting_report.rows == values["safelight_image_rows_total"]
    assert accounting_report.tokens == values["safelight_image_tokens_total"]
    assert accounting_report.device_seconds == _of_stages(values, "safelight_image_device_seconds_total")
    flops = _of_stages(values, "safelight_image_flops_total")
    assert accounting_report.flops == sum(flops.values())
    [account] = accounting_report.accounts
    for totals in (accounting_report, account):
        assert totals.store_seconds == values["safelight_image_store_seconds_total"]
        assert totals.stored_bytes == values["safelight_image_store_bytes_total"]
    assert {stage: usage.flops for stage, usage in account.stages.items()} == flops
    assert sum(usage.queue_seconds for usage in account.stages.values()) == pytest.approx(
        values["safelight_image_queue_seconds_sum"]
    )
    assert sum(accounting_report.requests.values()) == sum(
        value for name, value in values.items() if name.startswith("safelight_requests_total")
    )
    assert accounting_report.mfu == pytest.approx(values["safelight_mfu_ratio"])


def test_counts_of_two_replicas_add_up_and_the_rest_is_the_firsts() -> None:
    counts = ("images", "previews", "running", "waiting", "ticks", "rows", "cache_hits", "cache_misses")
    statuses = []
    for replica in (1, 2):
        numbers: dict[str, Any] = {name: 10 * number + replica for number, name in enumerate(counts)}
        curve = replace(CURVE, slowdown=float(replica))
        statuses.append(
            StageStatus(attention=f"kernel {replica}", peak_flops=float(replica), curve=curve, **numbers)
        )
    ledger = Ledger()
    for source, status in zip("ab", statuses, strict=True):
        ledger.receive(StageReport(source, 0, "denoise", (), StageTotals(work_left=1.5), status, 1, 2))
    stage = snapshot(ledger)["denoise", ""]
    assert (stage.replicas, stage.work_left) == (2, 3.0)
    sums: dict[str, Any] = {name: 20 * number + 3 for number, name in enumerate(counts)}
    assert stage.status == replace(statuses[0], **sums)


def test_an_unknown_mfu_is_not_a_number() -> None:
    metrics = Metrics()
    metrics.observe_snapshot(ServiceSnapshot(mfu={"m": None}))
    value = samples(metrics)["safelight_mfu_ratio"]
    assert value != value


def _values(labels: Mapping[str, str]) -> list[str]:
    """The values of all labels but the model's, which has a test of its own."""
    names = sorted(labels.keys() - {"model"}, key=lambda name: (name == "le", name))
    return [labels[name] for name in names]


def _of_stages(values: Mapping[str, float], name: str) -> dict[str, float]:
    return {stage: values[f"{name} {stage}"] for stage in STATUS}
