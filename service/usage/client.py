"""The seam between a gateway and the ledger, wherever it is."""

import threading
from collections.abc import Mapping
from typing import Protocol

from safelight.service.messages import StageCensus
from safelight.service.settings import Settings
from safelight.service.usage.events import Statement
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import AccountingFigures, figures
from safelight.service.usage.stage_snapshot import Measures, measures


class Books(Protocol):
    """Takes statements and answers for them."""

    def post(self, statement: Statement) -> None:
        """From any thread; returns when it has been entered."""
        ...

    async def census(self) -> Mapping[str, StageCensus | None]:
        """What each stage said last, if that is not long ago."""
        ...

    async def measures(self) -> Measures: ...

    async def figures(self, window: float | None, latest: int) -> AccountingFigures: ...


class BooksHere:
    """A ledger in this process."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._ledger = Ledger()
        self._lock = threading.Lock()

    def post(self, statement: Statement) -> None:
        with self._lock:
            self._ledger.post(statement)

    async def census(self) -> Mapping[str, StageCensus | None]:
        with self._lock:
            return self._ledger.census()

    async def measures(self) -> Measures:
        with self._lock:
            return measures(self._ledger)

    async def figures(self, window: float | None, latest: int) -> AccountingFigures:
        with self._lock:
            return figures(self._ledger, self._settings, window, latest)
