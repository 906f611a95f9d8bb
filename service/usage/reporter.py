"""Carries statements to the ledger on a thread of its own: in order, and again until they have arrived."""

import logging
import threading
import uuid
from collections.abc import Callable

from safelight.service.usage.events import GatewayReport, UsageReport
from safelight.service.usage.records import UsageRecord

logger = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
LAST_SECONDS = 5.0
Collect = Callable[
    [str, int], UsageReport | None
]  # of a source and a number: what is to be reported, if anything
Send = Callable[[UsageReport], None]


class UsageReporter(threading.Thread):
    """Takes a statement, posts it, and takes the next one only when that has arrived."""

    def __init__(self, take: Collect, post: Send, every: float = EVERY_SECONDS):
        super().__init__(name="reporter", daemon=True)
        self._take = take
        self._post = post
        self._every = every
        self._source = uuid.uuid4().hex
        self._number = 0
        self._undelivered: UsageReport | None = None
        self._turn = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._every):
            self.deliver()
        self.deliver()

    def deliver(self) -> bool:
        """Now; False if it did not arrive."""
        with self._turn:
            statement = self._undelivered or self._take(self._source, self._number)
            if statement is None:
                return True
            try:
                self._post(statement)
            except Exception as error:  # it is sent again: the ledger may be being replaced
                if self._undelivered is None:
                    logger.warning("the ledger does not answer: %s", type(error).__name__)
                self._undelivered = statement
                return False
            self._undelivered = None
            self._number += 1
            return True

    def stop(self) -> None:
        """Deliver the rest and end; once, and within `LAST_SECONDS`."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self.is_alive():
            self.join(LAST_SECONDS)
        else:
            self.deliver()


class Outbox:
    """Records of a gateway that wait for the reporter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[UsageRecord] = []

    def put(self, record: UsageRecord) -> None:
        with self._lock:
            self._records.append(record)

    def take(self, source: str, number: int) -> GatewayReport | None:
        with self._lock:
            records, self._records = tuple(self._records), []
        return GatewayReport(source, number, records) if records else None
