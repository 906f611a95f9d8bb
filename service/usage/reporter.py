"""Background delivery of usage reports to the ledger: in order, retried until they arrive."""

import logging
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable

from safelight.service.usage.events import GatewayReport, UsageReport
from safelight.service.usage.records import UsageRecord

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
STOP_SECONDS = 5.0
RECORDS_KEPT = 100_000  # of a gateway, some 1 KB each, while the ledger takes none
RECORDS_SENT = 2_000  # in one report
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
        was_behind = self._undelivered is not None
        if self.deliver() and was_behind:  # what came after the report that had not arrived
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

    @property
    def is_stuck(self) -> bool:
        """Whether a report that has failed to arrive is being sent again at this moment."""
        return self._undelivered is not None and self._delivery.locked()

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
    """What a gateway has to tell the ledger: records, retries, and images in flight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[UsageRecord] = deque()
        self._dropped = 0
        self._retried: Counter[str] = Counter()
        self._in_flight: dict[str, int] = {}

    def put(self, record: UsageRecord) -> None:
        """Add a record; without room for it the oldest one is dropped."""
        with self._lock:
            if len(self._records) >= RECORDS_KEPT:
                self._records.popleft()
                self._dropped += 1
            self._records.append(record)

    def count_retry(self, model: str) -> None:
        """Count an image that is sent to the stages again."""
        with self._lock:
            self._retried[model] += 1

    def set_in_flight(self, model: str, num_images: int) -> None:
        """Set how many images of a model are not answered yet."""
        with self._lock:
            self._in_flight[model] = num_images

    def collect(self, source: str, number: int) -> GatewayReport:
        """Take out what waits, up to `RECORDS_SENT` records, as a report."""
        with self._lock:
            count = min(len(self._records), RECORDS_SENT)
            report = GatewayReport(
                source,
                number,
                records=tuple(self._records.popleft() for _ in range(count)),
                retried=tuple(self._retried.items()),
                in_flight=tuple(self._in_flight.items()),
                dropped=self._dropped,
            )
            self._retried, self._dropped = Counter(), 0
            return report
