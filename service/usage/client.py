"""The interface between a gateway and the ledger, whether in this process or in another."""

import threading
from collections.abc import Mapping
from typing import Protocol

from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from safelight.service.usage.events import UsageReport
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import build_report
from safelight.service.usage.report_schema import AccountingReport
from safelight.service.usage.service_snapshot import ServiceSnapshot, service_snapshot


class LedgerClient(Protocol):
    """Sends usage reports to the ledger and queries it."""

    def send(self, report: UsageReport) -> None:
        """Deliver one report; callable from any thread, returns when the ledger has recorded it."""
        ...

    async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        """The latest status of each stage of a model, or of any; None for one without a living replica."""
        ...

    async def snapshot(self) -> ServiceSnapshot:
        """What the metrics say of all requests and of every stage."""
        ...

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        """The accounting of the last `window` seconds, with the `latest` requests one by one."""
        ...


class LocalLedger:
    """A ledger in this process."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._ledger = Ledger()
        self._lock = threading.Lock()

    def send(self, report: UsageReport) -> None:
        with self._lock:
            self._ledger.receive(report)
            self._ledger.changes.take()  # nothing is kept

    async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        with self._lock:
            return self._ledger.status(model)

    async def snapshot(self) -> ServiceSnapshot:
        with self._lock:
            return service_snapshot(self._ledger)

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        with self._lock:
            return build_report(self._ledger, self._settings, window, latest)
