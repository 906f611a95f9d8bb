"""The seam between a gateway and the ledger, wherever it is."""

import threading
from typing import Protocol

from service.charges import Statement
from service.figures import AccountingFigures, figures
from service.ledger import Ledger
from service.settings import Settings


class Books(Protocol):
    """Takes statements and answers for them."""

    def post(self, statement: Statement) -> None:
        """From any thread; returns when it has been entered."""
        ...

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

    async def figures(self, window: float | None, latest: int) -> AccountingFigures:
        with self._lock:
            return figures(self._ledger, self._settings, window, latest)
