"""Background delivery of usage reports to the ledger: in order, retried until they arrive."""

import logging
import threading
import uuid
from collections.abc import Callable

from safelight.service.usage.events import GatewayReport, UsageReport
from safelight.service.usage.records import UsageRecord

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
STOP_SECONDS = 5.0
Collect = Callable[[str, int], UsageReport | None]  # (source, number) to a report, None if there is nothing
Send = Callable[[UsageReport], None]


class UsageReporter(threading.Thread):
    """Collects a report and sends it until it has arrived; only then collects the next one.

    Args:
        collect: Makes the report with this source and number; None if there is nothing to report.
        send: Delivers a report; raises if it did not arrive.
        interval: Seconds between two reports.
    """

    def __init__(self, collect: Collect, send: Send, interval: float = INTERVAL_SECONDS):
        super().__init__(name="reporter", daemon=True)
        self._collect = collect
        self._send = send
        self._interval = interval
        self._source = uuid.uuid4().hex
        self._number = 0
        self._undelivered: UsageReport | None = None
        self._delivery = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._interval):
            self.deliver()
        self.deliver()

    def deliver(self) -> bool:
        """Collect and send a report at once; False if it did not arrive."""
        with self._delivery:
            report = self._undelivered or self._collect(self._source, self._number)
            if report is None:
                return True
            try:
                self._send(report)
            except Exception as error:  # a later call retries: the ledger's replica may be restarting
                if self._undelivered is None:
                    logger.warning("the ledger does not answer: %s", type(error).__name__)
                self._undelivered = report
                return False
            self._undelivered = None
            self._number += 1
            return True

    def stop(self) -> None:
        """Deliver what is left and end the thread, within `STOP_SECONDS`; further calls do nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_SECONDS)
        else:
            self.deliver()


class Outbox:
    """A gateway's usage records that wait for the reporter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[UsageRecord] = []

    def put(self, record: UsageRecord) -> None:
        with self._lock:
            self._records.append(record)

    def collect(self, source: str, number: int) -> GatewayReport | None:
        """Take out the waiting records as a report; None if there are none."""
        with self._lock:
            records, self._records = tuple(self._records), []
        return GatewayReport(source, number, records) if records else None
