"""The accounting report of `/v1/accounting`: rates, costs, targets and balances from the ledger's sums."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safelight.pipeline.params import UsageAmounts
from safelight.service.backend import STAGES
from safelight.service.settings import Settings
from safelight.service.usage.aggregates import (
    LedgerEntry,
    PeriodTotals,
    ReplicaEntry,
    ReplicaSeconds,
    RequestTotals,
)
from safelight.service.usage.events import StageKey
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.records import RequestOutcome
from safelight.service.usage.report_schema import (
    IN_MEMORY,
    AccountingReport,
    AccountTotals,
    Balance,
    ModelReport,
    Percentiles,
    ReplicaReport,
    RequestReport,
    StageBalance,
    StorageReport,
    Target,
)

HOUR = 3600.0


def build_report(
    ledger: Ledger,
    settings: Settings,
    window: float | None = None,
    latest: int = 0,
    storage: StorageReport = IN_MEMORY,
) -> AccountingReport:
    """The accounting of the last `window` seconds, or since the accounts began.

    Lists the `latest` requests one by one, newest first.

    Args:
        ledger: The ledger.
        settings: Prices and targets.
        window: Seconds; None: since the accounts began.
        latest: How many requests to list.
        storage: Where the accounts are kept.
    """
    usage = _window_usage(ledger, window, "")
    replicas = {stage: ledger.replicas(stage) for stage in STAGES}
    latency = percentiles([entry.record.seconds for entry in usage.done])
    peak = _peak_flops(replicas["denoise"])
    total, denoise = usage.requests, usage.requests.usage["denoise"]
    return AccountingReport(
        since=ledger.since,
        now=ledger.now,
        window_seconds=usage.seconds,
        requests=_by_outcome(total),
        refusals=dict(total.codes),
        images=total.images,
        images_per_hour=usage.images_per_hour,
        devices=len(replicas["denoise"]),
        images_per_hour_per_device=usage.images_per_hour_per_device,
        images_per_busy_hour=usage.images_per_busy_hour,
        latency_seconds=latency,
        queue_seconds=percentiles([_queue_seconds(entry) for entry in usage.done]),
        nfe=denoise.nfe,
        rows=denoise.rows,
        tokens=denoise.tokens,
        flops=sum(amounts.flops for amounts in total.usage.values()),
        device_seconds={stage: amounts.device_seconds for stage, amounts in total.usage.items()},
        device_seconds_per_image=usage.device_seconds_per_image,
        store_seconds=total.store.seconds,
        stored_bytes=total.store.num_bytes,
        mfu=_mfu(denoise, peak),
        peak_flops=peak,
        cost_per_1000_images=usage.cost_per_1000_images(settings.price_per_device_hour),
        currency_per_device_hour=settings.price_per_device_hour,
        targets=_targets(settings, latency.p95, usage.images_per_busy_hour),
        accounts=_accounts(usage.totals, ledger.key_names, settings.price_per_device_hour),
        models=[_model_report(ledger, settings, window, model) for model in _models(ledger)],
        balance=balance(ledger),
        replicas=[_replica_report(entry) for entries in replicas.values() for entry in entries],
        latest=[_request_report(entry) for entry in ledger.latest_entries(latest)],
        storage=storage,
        dropped_records=ledger.state.dropped,
    )


@dataclass(frozen=True)
class WindowUsage:
    """The sums of one window, and the rates that follow from them; None where nothing was measured."""

    seconds: float
    model: str  # whose requests these are; empty: of all models
    totals: PeriodTotals
    requests: RequestTotals  # of all keys
    done: list[LedgerEntry]
    busy_seconds: float  # of all stages; of one model, those attributed to it and its denoiser's others

    @property
    def images_per_hour(self) -> float:
        return HOUR * self.requests.images / self.seconds

    @property
    def images_per_hour_per_device(self) -> float | None:
        """Images per hour that a replica of the denoiser was alive."""
        alive = self.totals.stage_seconds("denoise", self.model).alive
        return HOUR * self.requests.images / alive if alive else None

    @property
    def images_per_busy_hour(self) -> float | None:
        """Images per busy hour of the stages together, start and warm-up excluded."""
        idle = sum(
            seconds.starting + seconds.warm_up
            for (_, model), seconds in self.totals.stages.items()
            if self.model in ("", model)
        )
        working = self.busy_seconds - idle
        return HOUR * self.requests.images / working if working > 0 else None

    @property
    def device_seconds_per_image(self) -> float | None:
        return self.busy_seconds / self.requests.images if self.requests.images else None

    def cost_per_1000_images(self, price_per_device_hour: float) -> float | None:
        if not (price_per_device_hour and self.requests.images):
            return None
        return 1000.0 * price_per_device_hour * self.busy_seconds / HOUR / self.requests.images


def _window_usage(ledger: Ledger, window: float | None, model: str) -> WindowUsage:
    """The usage of one model in a window; of all models for an empty id."""
    totals = ledger.window_totals(window)
    requests = totals.all_requests(model)
    return WindowUsage(
        seconds=max(ledger.now - ledger.window_start(window), 1e-9),
        model=model,
        totals=totals,
        requests=requests,
        done=[entry for entry in ledger.done_entries(window) if model in ("", entry.record.model)],
        busy_seconds=_busy_seconds(totals, requests, model),
    )


def _busy_seconds(totals: PeriodTotals, requests: RequestTotals, model: str) -> float:
    """Busy seconds of all stages; for one model, of its own and its share of those that models share."""
    busy = sum(seconds.busy for (_, other), seconds in totals.stages.items() if model in ("", other))
    if not model:
        return busy
    separate = {stage for stage, other in totals.stages if other == model}
    return busy + sum(
        amounts.device_seconds for stage, amounts in requests.usage.items() if stage not in separate
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 by the nearest rank; None without values."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None

    return Percentiles(p50=at(0.50), p95=at(0.95), p99=at(0.99))


def stage_balances(ledger: Ledger) -> dict[StageKey, StageBalance]:
    """Where every busy second went, since the ledger's start."""
    return {key: _stage_balance(ledger, key) for key in ledger.stage_keys()}


def _stage_balance(ledger: Ledger, key: StageKey) -> StageBalance:
    stage, model = key
    seconds = ledger.totals.stages.get(key) or ReplicaSeconds()
    requests = ledger.attributed(stage, model)
    in_progress = ledger.pending_seconds(key) + ledger.open_seconds(key)
    overhead = seconds.busy - requests - in_progress - seconds.warm_up - seconds.starting - seconds.lost
    return StageBalance(
        busy=seconds.busy,
        requests=requests,
        in_progress=in_progress,
        warm_up=seconds.warm_up,
        starting=seconds.starting,
        lost=seconds.lost,
        overhead=overhead,
    )


def balance(ledger: Ledger) -> Balance:
    """Where every busy second of each stage went, those of all models together, since the ledger's start."""
    balances = stage_balances(ledger)
    stages = {
        stage: StageBalance(
            **{
                name: sum(getattr(part, name) for (other, _), part in balances.items() if other == stage)
                for name in StageBalance.model_fields
            }
        )
        for stage in STAGES
    }
    busy = sum(stage.busy for stage in stages.values())
    attributed_seconds = sum(stage.requests + stage.in_progress for stage in stages.values())
    return Balance(stages=stages, unattributed_share=1.0 - attributed_seconds / busy if busy else None)


def _by_outcome(totals: RequestTotals) -> dict[str, int]:
    return {outcome.value: totals.requests[outcome] for outcome in RequestOutcome}


def _queue_seconds(entry: LedgerEntry) -> float:
    return sum(amounts.queue_seconds for amounts in entry.usage.values())


def _peak_flops(denoisers: Sequence[ReplicaEntry]) -> float | None:
    """The first denoiser's peak FLOP/s that is known."""
    return next((peak for entry in denoisers if (peak := entry.report.status.peak_flops)), None)


def _targets(settings: Settings, p95: float | None, images_per_busy_hour: float | None) -> list[Target]:
    rate = images_per_busy_hour
    return [
        _target("p95_latency_seconds", settings.target_latency_seconds, p95, at_most=True),
        _target("images_per_busy_hour", settings.target_images_per_hour, rate, at_most=False),
    ]


def _target(name: str, target: float, value: float | None, at_most: bool) -> Target:
    met = None if value is None else value <= target if at_most else value >= target
    by = None if value is None else value / target - 1.0
    return Target(name=name, wanted=target, got=value, met=met, by=by)


def _accounts(
    period: PeriodTotals, names: Mapping[str, str], price_per_device_hour: float
) -> list[AccountTotals]:
    return [
        AccountTotals(
            key=key,
            key_name=names.get(key, ""),
            model=model,
            requests=_by_outcome(totals),
            images=totals.images,
            device_seconds=totals.device_seconds,
            spend=totals.device_seconds * price_per_device_hour / HOUR,
            stages=totals.usage,
            store_seconds=totals.store.seconds,
            stored_bytes=totals.store.num_bytes,
        )
        for (key, model), totals in sorted(period.accounts.items())
    ]


def _models(ledger: Ledger) -> list[str]:
    """The models of which anything is known, since the accounts began."""
    return sorted(
        {model for model in (*ledger.series, *(model for _, model in ledger.totals.stages)) if model}
    )


def model_mfu(ledger: Ledger) -> dict[str, float | None]:
    """The model FLOPs utilisation of each model's denoisers since the accounts began; None if unknown."""
    mfus = {}
    for model in _models(ledger):
        usage = ledger.series[model].attributed["denoise"] if model in ledger.series else UsageAmounts()
        mfus[model] = _mfu(usage, _peak_flops(ledger.replicas("denoise", model)))
    return mfus


def _model_report(ledger: Ledger, settings: Settings, window: float | None, model: str) -> ModelReport:
    usage = _window_usage(ledger, window, model)
    denoisers = ledger.replicas("denoise", model)
    total, denoise = usage.requests, usage.requests.usage["denoise"]
    return ModelReport(
        model=model,
        requests=_by_outcome(total),
        images=total.images,
        images_per_hour=usage.images_per_hour,
        devices=len(denoisers),
        images_per_hour_per_device=usage.images_per_hour_per_device,
        images_per_busy_hour=usage.images_per_busy_hour,
        latency_seconds=percentiles([entry.record.seconds for entry in usage.done]),
        queue_seconds=percentiles([_queue_seconds(entry) for entry in usage.done]),
        stages=total.usage,
        device_seconds_per_image=usage.device_seconds_per_image,
        mfu=_mfu(denoise, _peak_flops(denoisers)),
        cost_per_1000_images=usage.cost_per_1000_images(settings.price_per_device_hour),
    )


def _mfu(denoise: UsageAmounts, peak: float | None) -> float | None:
    """FLOP/s of the busy denoiser over the peak of its device."""
    return denoise.flops / denoise.device_seconds / peak if peak and denoise.device_seconds else None


def _replica_report(entry: ReplicaEntry) -> ReplicaReport:
    report = entry.report
    return ReplicaReport(
        stage=report.stage,
        model=report.model,
        process=report.process,
        thread=report.thread,
        busy_seconds=report.totals.busy,
        work_left_seconds=report.totals.work_left,
        pictures=report.status.images,
    )


def _request_report(entry: LedgerEntry) -> RequestReport:
    record = entry.record
    return RequestReport(
        request_id=record.request_id,
        key=record.key,
        key_name=record.key_name,
        model=record.model,
        outcome=record.outcome.value,
        code=record.code,
        images=entry.images,
        seconds=record.seconds,
        ended=record.ended,
        user=record.user,
        stages=entry.usage,
        store_seconds=record.store.seconds,
        stored_bytes=record.store.num_bytes,
    )
