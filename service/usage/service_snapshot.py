"""Snapshot of the whole service for the metrics, the same at every gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import model_mfu
from safelight.service.usage.series import RequestSeries
from safelight.service.usage.stage_snapshot import Snapshot, snapshot


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """What the metrics say of all gateways and stages together."""

    requests: Mapping[str, RequestSeries] | None = None  # by model; None: the accounts are not read yet
    stages: Snapshot = field(default_factory=dict)
    mfu: Mapping[str, float | None] = field(default_factory=dict)  # by model
    in_flight: Mapping[str, int] = field(default_factory=dict)  # images, by model
    gateways: int = 0  # alive
    dropped: int = 0  # records for which gateways had no room
    unsaved_seconds: float = 0.0  # for which the database could not be written


def service_snapshot(ledger: Ledger) -> ServiceSnapshot:
    """The snapshot; its series are the ledger's own."""
    return ServiceSnapshot(
        requests=dict(ledger.series),
        stages=snapshot(ledger),
        mfu=model_mfu(ledger),
        in_flight=dict(ledger.in_flight()),
        gateways=len(ledger.gateways()),
        dropped=ledger.state.dropped,
    )
