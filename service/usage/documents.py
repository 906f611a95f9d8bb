"""The JSON documents in the tables of the accounts. Numbers come back with the bits that they had."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any

from safelight.pipeline.params import UsageAmounts
from safelight.service.messages import StageStatus
from safelight.service.usage.events import StageKey, StageReport, StageTotals, UsageEvent
from safelight.service.usage.histograms import HistogramData, TickHistogramData
from safelight.service.usage.records import RequestOutcome, StoreUsage
from safelight.service.usage.series import RequestSeries

Usage = Mapping[str, UsageAmounts]  # by stage
TICKS = ("seconds", "rows", "tokens", "forecast")


def write_usage(usage: Usage) -> str:
    """Amounts by stage."""
    return _dump(_usage(usage))


def read_usage(document: str) -> dict[str, UsageAmounts]:
    """The amounts of `write_usage`."""
    return _read_usage(json.loads(document))


def write_events(events: Iterable[tuple[StageKey, UsageEvent]]) -> str:
    """The usage of a request that has not ended."""
    return _dump([[*key, *astuple(event.amounts)] for key, event in events])


def read_events(document: str, record_id: str) -> list[tuple[StageKey, UsageEvent]]:
    """The events of `write_events`."""
    return [
        ((stage, model), UsageEvent(record_id, UsageAmounts(*amounts)))
        for stage, model, *amounts in json.loads(document)
    ]


def write_ticks(ticks: TickHistogramData) -> str:
    """The histograms of a denoiser's ticks."""
    return _dump(_ticks(ticks))


def read_ticks(document: str) -> TickHistogramData:
    """The histograms of `write_ticks`."""
    return _read_ticks(json.loads(document))


def write_codes(codes: Mapping[str, int]) -> str:
    """Numbers by error code."""
    return _dump(dict(codes))


def read_codes(document: str) -> dict[str, int]:
    """The numbers of `write_codes`."""
    codes: dict[str, int] = json.loads(document)
    return codes


def write_series(series: RequestSeries) -> str:
    """What the metrics count of a model."""
    return _dump(
        {
            "requests": [[outcome.value, code, count] for (outcome, code), count in series.requests.items()],
            "duration": {outcome.value: _histogram(data) for outcome, data in series.duration.items()},
            "queue": _histogram(series.queue),
            "images": series.images,
            "retried": series.retried,
            "promised": series.promised,
            "kept": series.kept,
            "sent": _usage(series.sent),
            "attributed": _usage(series.attributed),
            "store": astuple(series.store),
        }
    )


def read_series(document: str) -> RequestSeries:
    """The counts of `write_series`."""
    values = json.loads(document)
    series = RequestSeries(
        duration={RequestOutcome(name): _read_histogram(data) for name, data in values["duration"].items()},
        queue=_read_histogram(values["queue"]),
        images=values["images"],
        retried=values["retried"],
        promised=values.get("promised", 0),  # older versions made no promises
        kept=values.get("kept", 0),
        sent=_read_usage(values["sent"]),
        attributed=_read_usage(values["attributed"]),
        store=StoreUsage(*values["store"]),
    )
    for outcome, code, count in values["requests"]:
        series.requests[RequestOutcome(outcome), code] = count
    return series


def write_replica(report: StageReport) -> str:
    """What a ledger has recorded of a stage's replica."""
    totals = report.totals
    return _dump(
        {
            "stage": report.stage,
            "model": report.model,
            "number": report.number,
            "totals": [totals.busy, totals.starting, totals.lost, totals.open, totals.work_left],
            "ticks": _ticks(totals.ticks),
        }
    )


def read_replica(document: str, source: str) -> StageReport:
    """The replica's last report, without its events and with an empty status."""
    values = json.loads(document)
    busy, starting, lost, open_seconds, work_left = values["totals"]
    totals = StageTotals(busy, starting, lost, open_seconds, work_left, _read_ticks(values["ticks"]))
    status = StageStatus()
    return StageReport(
        source, values["number"], values["stage"], (), totals, status, 0, 0, model=values["model"]
    )


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _usage(usage: Usage) -> dict[str, Any]:
    return {stage: astuple(amounts) for stage, amounts in usage.items()}


def _read_usage(values: Mapping[str, Any]) -> dict[str, UsageAmounts]:
    return {stage: UsageAmounts(*amounts) for stage, amounts in values.items()}


def _histogram(data: HistogramData) -> dict[str, Any]:
    return {"bounds": data.bounds, "counts": data.counts, "total": data.total}


def _read_histogram(values: Mapping[str, Any]) -> HistogramData:
    return HistogramData(tuple(values["bounds"]), tuple(values["counts"]), values["total"])


def _ticks(ticks: TickHistogramData) -> dict[str, Any]:
    return {name: _histogram(getattr(ticks, name)) for name in TICKS}


def _read_ticks(values: Mapping[str, Any]) -> TickHistogramData:
    return TickHistogramData(**{name: _read_histogram(values[name]) for name in TICKS})
