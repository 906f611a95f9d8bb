"""A ledger whose accounts are in the database: what it has acknowledged survives it.

Reports are recorded together, and written in one transaction before any of them is acknowledged. So their
senders keep what is not written, and send it again, to this ledger or to the one that takes over.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

from safelight.service.backend import STAGES
from safelight.service.database.connection import DatabaseFailed
from safelight.service.errors import AccountsUnavailable
from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from safelight.service.usage.events import UsageReport
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import build_report
from safelight.service.usage.report_schema import AccountingReport, StorageReport
from safelight.service.usage.service_snapshot import ServiceSnapshot, service_snapshot
from safelight.service.usage.storage import LedgerReplaced, LedgerStorage

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # after which the time that idle replicas were alive is written as well
WAIT_SECONDS = 1.0  # that a reader waits for a transaction
MIGRATION_SECONDS = 5.0  # after which tables that are not there count as a failure
RETRY_SECONDS = 1.0  # between two attempts to read the accounts
RETENTION_SECONDS = 60.0  # between two searches for old rows
RETENTION_PAUSE = 0.1  # between two transactions that delete some
DAY = 86_400.0
ATTEMPTS = 3  # to write, each after another ledger took over


class StoredLedger:
    """The ledger of one service, on one event loop.

    Args:
        settings: The service's settings.
        storage: Where the accounts are.
        migrations: Makes the tables; None: they are there.
        clock: Returns the current Unix time.
    """

    def __init__(
        self,
        settings: Settings,
        storage: LedgerStorage,
        migrations: threading.Thread | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._settings = settings
        self._storage = storage
        self._migrations = migrations
        self._clock = clock
        self._ledger: Ledger | None = None  # until the accounts are read
        self._waiting: list[tuple[UsageReport, asyncio.Future[None]]] = []
        self._has_work = asyncio.Event()
        self._lock = asyncio.Lock()  # while recorded reports are written
        self._saved = clock()
        self._failing_since: float | None = None
        self._error = ""
        self._last_snapshot: ServiceSnapshot | None = None
        self._tasks: list[asyncio.Future[None]] = []

    async def receive(self, report: UsageReport) -> None:
        """Record a report; returns when it is written. Raises `AccountsUnavailable` if it could not be."""
        self.start()
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((report, written))
        self._has_work.set()
        await written

    def start(self) -> None:
        """Begin to read the accounts, and then to write them; further calls do nothing."""
        if not self._tasks:
            self._tasks = [asyncio.ensure_future(self._run()), asyncio.ensure_future(self._delete_old())]

    def stop(self) -> None:
        """End at once: whatever is not acknowledged will be sent again."""
        for task in self._tasks:
            task.cancel()

    async def status(self, model: str = "") -> Mapping[str, StageStatus | None]:
        """The latest status of each stage; None while the accounts are not read."""
        return dict.fromkeys(STAGES) if self._ledger is None else self._ledger.status(model)

    async def snapshot(self) -> ServiceSnapshot:
        """What the metrics say: only what is written, so that no count falls when a ledger ends."""
        if await self._is_written() and self._ledger is not None:
            self._last_snapshot = deepcopy(service_snapshot(self._ledger))
        shown = self._last_snapshot or ServiceSnapshot()
        return replace(shown, unsaved_seconds=self._unsaved_seconds)

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        """The accounting report. Raises `AccountsUnavailable` while the accounts are not read."""
        await self._is_written()
        if self._ledger is None:
            raise AccountsUnavailable()
        storage = StorageReport(
            database=self._storage.description, unsaved_seconds=self._unsaved_seconds, error=self._error
        )
        return build_report(self._ledger, self._settings, window, latest, storage)

    @property
    def _unsaved_seconds(self) -> float:
        return 0.0 if self._failing_since is None else max(self._clock() - self._failing_since, 1e-3)

    async def _is_written(self) -> bool:
        """Whether all that the ledger knows is written, after a short wait for a transaction that runs."""
        self.start()
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._lock:
                return self._failing_since is None
        except TimeoutError:
            return False

    async def _run(self) -> None:
        """Record and write what waits, until the task is cancelled."""
        while True:
            async with self._lock:
                waiting, self._waiting = self._waiting, []
                self._has_work.clear()
                is_written = await self._write([report for report, _ in waiting])
            for _, written in waiting:
                if written.done():  # whoever sent it has given up
                    continue
                if is_written:
                    written.set_result(None)
                else:
                    written.set_exception(AccountsUnavailable())
            if self._ledger is None:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._has_work.wait()

    async def _write(self, reports: list[UsageReport]) -> bool:
        """Record reports, and write what they have changed; returns whether they may be acknowledged."""
        try:
            for _ in range(ATTEMPTS):
                ledger = self._ledger = self._ledger or await self._open()
                for report in reports:
                    ledger.receive(report)
                if await self._save(ledger):
                    return True
                self._ledger = None
            raise DatabaseFailed("other ledgers take over the accounts of this service again and again")
        except Exception as error:  # of the database's drivers, too; reports are sent again
            self._note_failure(error)
            return False

    async def _open(self) -> Ledger:
        """The ledger as the accounts have it. Raises `DatabaseFailed`."""
        if self._migrations is not None:
            await asyncio.to_thread(self._migrations.join, MIGRATION_SECONDS)
            if self._migrations.is_alive():
                raise DatabaseFailed(f"{self._storage.description}: its tables cannot be made yet")
            self._migrations = None
        return Ledger(self._clock, await self._storage.take_over())

    async def _save(self, ledger: Ledger) -> bool:
        """Write what has changed, if it matters; returns False if another ledger has taken over."""
        is_due = ledger.changes.is_urgent or self._clock() >= self._saved + IDLE_SECONDS
        if not is_due and self._failing_since is None:
            return True
        changes = ledger.changes.take()
        try:
            await self._storage.save(ledger.state, changes)
        except LedgerReplaced:
            return False
        except BaseException:
            ledger.changes.put_back(changes)
            raise
        self._saved = self._clock()
        if self._failing_since is not None:
            logger.info("the accounts are written again")
        self._failing_since, self._error = None, ""
        return True

    def _note_failure(self, error: Exception) -> None:
        cause = str(error) if isinstance(error, DatabaseFailed) else type(error).__name__
        if self._failing_since is None:
            self._failing_since = self._clock()
            logger.error(
                "the accounts cannot be written: %s", cause, exc_info=not isinstance(error, DatabaseFailed)
            )
        self._error = cause

    async def _delete_old(self) -> None:
        """Delete rows that are too old, a few at a time, until the task is cancelled."""
        records, minutes = self._settings.usage_record_days * DAY, self._settings.usage_minute_days * DAY
        while True:
            await asyncio.sleep(RETENTION_SECONDS)
            try:
                while await self._storage.delete_old(records, minutes):
                    await asyncio.sleep(RETENTION_PAUSE)
            except DatabaseFailed as error:
                logger.warning("old accounts cannot be deleted: %s", error)
