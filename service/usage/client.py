"""The seam between a gateway and the ledger, wherever it is."""

import threading
from collections.abc import Mapping
from typing import Protocol

from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from safelight.service.usage.events import UsageReport
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import AccountingReport, build_report
from safelight.service.usage.stage_snapshot import Snapshot, snapshot


class LedgerClient(Protocol):
    """Takes statements and answers for them."""

    def post(self, statement: UsageReport) -> None:
        """From any thread; returns when it has been entered."""
        ...

    async def status(self) -> Mapping[str, StageStatus | None]:
        """What each stage said last, if that is not long ago."""
        ...

    async def snapshot(self) -> Snapshot: ...

    async def report(self, window: float | None, latest: int) -> AccountingReport: ...


class LocalLedger:
    """A ledger in this process."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._ledger = Ledger()
        self._lock = threading.Lock()

    def post(self, statement: UsageReport) -> None:
        with self._lock:
            self._ledger.post(statement)

    async def status(self) -> Mapping[str, StageStatus | None]:
        with self._lock:
            return self._ledger.status()

    async def snapshot(self) -> Snapshot:
        with self._lock:
            return snapshot(self._ledger)

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        with self._lock:
            return build_report(self._ledger, self._settings, window, latest)
